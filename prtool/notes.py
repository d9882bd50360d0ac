"""Show what the library logs as a warning: one line "note: ..." on stderr, as commands show it."""

import logging


class NoteHandler(logging.Handler):
    """Shows each warning of prtool's loggers once in a process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record, if its text is a new one."""
        from prtool.console import message

        text = record.getMessage()
        if text not in self._shown:
            self._shown.add(text)
            message(f"note: {text}")


def show_notes() -> None:
    """From now on, warnings that prtool logs are shown by a `NoteHandler`; a second call changes nothing."""
    logger = logging.getLogger("prtool")
    if not any(isinstance(handler, NoteHandler) for handler in logger.handlers):
        logger.addHandler(NoteHandler())
