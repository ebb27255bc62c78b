"""What a person can ask for, one public function each. Only here do planning and effects meet."""
