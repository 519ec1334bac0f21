"""Passwords in URLs, kept out of messages."""

import re


def mask(text: str) -> str:
    """`text` with the passwords of the URLs in it hidden; unquoted ones (with / or @) as well."""
    text = re.sub(r"(://[^:@/\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)
