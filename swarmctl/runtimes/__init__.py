"""Model servers. base.py is what the rest knows of them; each other module holds all that is special to
one."""
