"""Text that comes in pieces, as whole words: what evaluations of streams count."""


class Words:
    """A word is whole once a blank or the end follows it."""

    def __init__(self) -> None:
        self.begun = ""

    def push(self, text: str) -> str:
        """Take more text; the words that are whole now, with blanks between them."""
        words, _, self.begun = (self.begun + text).rpartition(" ")
        return words.strip()

    def finish(self, text: str) -> str:
        """Take the last of the text; all the words that are left."""
        rest, self.begun = (self.begun + text).strip(), ""
        return rest
