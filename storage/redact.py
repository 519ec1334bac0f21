"""Passwords, tokens and signatures, kept out of all that is printed, logged, tagged or written.

`mask` is the one function for that. Sinks call it themselves (`ShardlineError`, `say`, `warn`, tags and parameters of
MLflow's runs, Prefect's logs), so that a message may hold whatever a library said.
"""

import re
import traceback

HIDDEN = "***"

#: scheme, slashes (also those of what was meant as a URL: s3//, s3:/), user, and a password to the last @ of the word:
#: whoever forgets to quote its / and @ is not to be punished for it.
_SCHEME = r"(?:(?<![a-z0-9+.-])([a-z0-9+.-]*+))?"  # looked for where a run of such begins only: texts may be long
_LOGIN = re.compile(rf"{_SCHEME}(://|//|:/)([^:@/?#\s]*):(?!:[a-z0-9+.-]+://)\S*@", re.IGNORECASE)
_NAME_ALONE = re.compile(rf"(?:{_SCHEME}(://)|(https?)(//|:/))([^:@/?#\s]+)@", re.IGNORECASE)
_WORD = re.compile(r"\S++")
#: What stands alone before the @ of these says where, or who; of all others it may be a token: https://TOKEN@host.
_TELL_WHERE = {"abfs", "abfss", "adl", "az", "wasb", "wasbs", "hdfs", "ssh", "git+ssh", "sftp", "scp", "file", "memory"}

_WORDS = r"(?=[\w.%~-]*(?:pass|pwd|secret|token|sig|credential|auth|key|sas|odbc_connect))[\w.%~-]*+"
_VALUE = r"(?:[^&\s'\"]|['\"](?=[\w%+/~-]))*"  # to the next & or blank; a quote that closes what is quoted stays
_QUERY = re.compile(rf"([?&;]{_WORDS}=){_VALUE}", re.IGNORECASE)
_NAMES = r"(?:password|passwd|pwd|passphrase|secret|token|api_?key|(?:secret_?)?access_?key|private_?key|account_?key)"
_TOKENS = r"(?:access|auth|refresh|security|session)[_-]?token"  # token=7 may be a count
_SETS = rf"(?:password|passwd|pwd|passphrase|secret|(?:api|access|private|account)[_-]?key|{_TOKENS})"
_SETTING = re.compile(rf"((?<![\w-])[\w-]*{_SETS}=){_VALUE}", re.IGNORECASE)
_ENTRY = re.compile(rf"(['\"][\w.-]*{_NAMES}['\"]\s*:\s*)(?:'[^']*'|\"[^\"]*\")", re.IGNORECASE)
_HEADER = re.compile(r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\"]+", re.IGNORECASE)
_SECRET_NAME = re.compile(rf"(?:.*[._-])?{_NAMES}", re.IGNORECASE)


def mask(text: str) -> str:
    """`text` with `***` for what lets one in: passwords of URLs (chained and unquoted ones too), tokens in the place
    of a user's name, such values of queries (?pwd=, X-Amz-Signature, …), of settings (password=…), of dictionaries and
    of Authorization headers. Masked text stays as it is. The time that this takes grows as the text does, whatever it
    holds."""
    text = _WORD.sub(_logins, text) if "@" in text else text
    text = _NAME_ALONE.sub(_name_alone, text)
    for found in (_QUERY, _SETTING, _ENTRY, _HEADER):
        text = found.sub(rf"\1{HIDDEN}", text)
    return text


def mask_value(name: str, text: str) -> str:
    """The value of the parameter `name`, masked: all of it where the name says what it is (train.args.api_key)."""
    return HIDDEN if text and _SECRET_NAME.fullmatch(name) else mask(text)


def masked_traceback(error: BaseException) -> str:
    """As Python shows it, with what caused it, and masked."""
    return mask("".join(traceback.format_exception(error))).rstrip()


def without_login(url: str) -> str:
    """`url` as a link for people: without user, password and token; the rest masked."""
    return re.sub(r"(://|//|:/)[^/\s@]*@", r"\1", mask(url))


def _logins(word: re.Match[str]) -> str:
    """Up to the last @ of the word, since from behind it every beginning of a login would be followed to the end."""
    before, at, after = word[0].rpartition("@")
    return _LOGIN.sub(_login, before + at) + after


def _login(found: re.Match[str]) -> str:
    scheme, slashes, user = found[1] or "", found[2], found[3]
    token = re.search(r"http|dav", scheme, re.IGNORECASE)  # https://TOKEN:x-oauth-basic@host
    return f"{scheme}{slashes}{HIDDEN if token else f'{user}:{HIDDEN}'}@"


def _name_alone(found: re.Match[str]) -> str:
    scheme, slashes, user = found[1] or found[3] or "", found[2] or found[4], found[5]
    known = scheme.lower().lstrip("0123456789+.-") in _TELL_WHERE
    return f"{scheme}{slashes}{user if known else HIDDEN}@"
