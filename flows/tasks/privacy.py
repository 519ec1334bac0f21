"""No password in Prefect's logs: what libraries say in tracebacks is masked before Prefect prints or stores it."""

import logging

from storage.redact import mask

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_FORMATTER = logging.Formatter()


class Masking(logging.Filter):
    """Lets every record through, with its message and traceback masked."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = mask(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = _FORMATTER.formatException(record.exc_info)
        record.exc_text = mask(record.exc_text) if record.exc_text else record.exc_text
        return True


def mask_logs() -> None:
    """From now on, in this process; a second call does nothing."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, Masking) for one in logger.filters):
            logger.addFilter(Masking())
