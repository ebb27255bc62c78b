"""Plain English to measure a quantisation on, where this swarm has said too little yet."""

TEXT = """\
The ferry leaves the harbour at seven in the morning and comes back before dark. In winter it
carries the post, a few sheep and whoever has business on the mainland; in summer there are more
visitors than seats. The captain knows most of them by name. He says that the sea is never the same
twice, although the timetable has not changed in forty years.

Water boils at a lower temperature on a mountain, because the air presses less upon it. Cooks who
live high up leave their beans on the fire for longer. A pot with a tight lid helps: the steam
cannot leave, the pressure rises, and so does the temperature. The same idea runs an engine, only
there the steam is made to do some work before it escapes.

To sort a list of numbers, take the first one and compare it with the second. If the first is
larger, let them change places. Go on to the second and the third, and so forth until the end. The
largest number has now sunk to the bottom. Repeat this for the rest of the list until nothing
changes places any more. There are faster ways, but few that are easier to explain. A list of a
thousand numbers takes about half a million comparisons this way; with a better method, which cuts
the list in two, sorts both halves and merges them, ten thousand are enough.

"Where did you put the key?" she asked. "Under the stone, as always," he said, "but somebody has
moved the stone." They looked along the wall until the rain began, then they gave up and knocked at
the neighbour's door. She had the key in her pocket. She had found it on Tuesday and wondered whose
it was.

What is the capital of France? The capital of France is Paris. How many days has a week? A week has
seven days. What is three plus four? Three plus four is seven. Please spell the word orange. It is
spelled o, r, a, n, g, e. Write a function that adds two numbers: def add(a, b): return a + b. Is
the earth flat? No, it is very nearly a ball, a little wider at the equator than from pole to pole,
because it turns. Who wrote this text? Somebody who needed a few hundred ordinary words about
ordinary things, in short sentences and in long ones, with names, numbers, questions and a little
code, so that two versions of a model could be compared on it word by word.

The museum opens on weekdays from nine to five. Tickets cost eight euros, half that for students,
and nothing on the first Sunday of the month. Bags must be left at the entrance. Photographs are
allowed without flash in all rooms but the third, where the drawings are older than the building and
fade in the light. If you have only an hour, begin on the second floor: there hangs the painting
that everybody comes for, and by noon there is a queue in front of it.
"""
