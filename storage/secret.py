"""Passwords and signatures in URLs, kept out of messages."""

import re


def mask(text: str) -> str:
    """`text` with the passwords of the URLs in it hidden, unquoted ones (with / or @) as well, and what lets one in by
    their queries: X-Amz-Signature, sig, token, …"""
    text = re.sub(r"(://[^:@/\s]*):\S*@", r"\1:***@", text)
    text = re.sub(r"(password=)[^&\s]*", r"\1***", text)
    return re.sub(r"(?i)([?&][\w.-]*(?:signature|sig|token|secret|key)=)[^&\s'\"]*", r"\1***", text)
