"""What a command says when it can't do what was asked: one sentence, a hint, an exit code."""

WRONG_USE = 2
FAILURE = 1
INTERRUPTED = 130


class CliError(Exception):
    """Ends the command. `main` prints the sentence and the hint on stderr, never a traceback."""

    def __init__(self, sentence: str, hint: str = "", code: int = FAILURE, status: int | None = None) -> None:
        """status: of the daemon's answer, where it is a refusal of the daemon's."""
        super().__init__(sentence)
        self.hint = hint
        self.code = code
        self.status = status
