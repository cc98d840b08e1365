"""What is asked: texts whose answers repeat their prompt, even those of a small model, and free ones."""

from dataclasses import dataclass

_HARBOUR = (
    "The harbour of the old town was closed in the spring because the stones of its northern wall had begun to slide "
    "into the water. Engineers measured the wall for three weeks and found that the foundation had been washed out by "
    "currents that nobody had expected. The council decided to rebuild the wall with larger stones and to leave the "
    "harbour closed until the autumn. Fishermen were given money for the time in which they could not work, and two of "
    "their boats were taken to a yard in the next bay."
)

_ACCOUNT = """class Account:
    def __init__(self, owner, balance):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("the amount has to be positive")
        self.balance = self.balance + amount

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("the balance is too small")
        self.balance = self.balance - amount
"""

_PEOPLE = (
    "Anna Weber, Hamburg, 1975; Boris Klein, Leipzig, 1981; Clara Vogt, Bremen, 1990; David Lang, Dresden, 1968; "
    "Erika Braun, Kassel, 1984; Frank Otto, Rostock, 1979"
)


@dataclass(frozen=True)
class Ask:
    """temperature: None for the likeliest tokens."""

    name: str
    prompt: str
    temperature: float | None = None


REPEATING = (
    Ask("a summary that quotes", f"Quote the important sentences of this text word for word:\n\n{_HARBOUR}"),
    Ask("a text to be kept", f"Repeat this text without changes:\n\n{_HARBOUR}"),
    Ask(
        "a class to be extended",
        f"Add a method `transfer` to this class and write the whole class:\n\n```python\n{_ACCOUNT}```",
    ),
    Ask("a list to be set anew", f"Write each of these people on a line of its own:\n\n{_PEOPLE}"),
)

_QUESTIONS = (
    ("of life", "What is the meaning of life?"),
    ("a story", "Write a short story about a lighthouse keeper and a storm."),
    ("an explanation", "Explain how a bicycle stays upright."),
    ("advice", "Give me advice for learning to cook."),
)

FREE = tuple(
    Ask(name if temperature is None else f"{name}, drawn", prompt, temperature)
    for temperature in (None, 1.0)
    for name, prompt in _QUESTIONS
)
