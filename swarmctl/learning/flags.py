"""Secrets and personal data in a text, by their known forms. Pure.

The forms of keys and tokens are those that their issuers publish and that secret scanners (gitleaks,
detect-secrets) look for; what has a checksum (cards, IBANs) is only flagged where it holds. A flag says
which form was met, never what was met: it goes into cards and logs.
"""

from __future__ import annotations

import re
from math import log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SECRETS: Mapping[str, re.Pattern[str]] = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
    "AWS key": re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})\b"),
    "GitLab token": re.compile(r"\bgl(?:pat|dt|rt|ptt|cbt|soat|ft)-[A-Za-z0-9_-]{20,}"),
    "Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|"
                              r"hooks\.slack\.com/services/T\w+/B\w+/\w{20,}"),
    "Stripe key": re.compile(r"\b[sr]k_(?:live|test|prod)_[A-Za-z0-9]{16,}"),
    "Google key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    "OpenAI key": re.compile(r"\bsk-(?!ant-)(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{32,}"),
    "Anthropic key": re.compile(r"\bsk-ant-[A-Za-z0-9_-]{32,}"),
    "Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z]{34}\b"),
    "npm token": re.compile(r"\bnpm_[A-Za-z0-9]{36}\b"),
    "PyPI token": re.compile(r"\bpypi-AgE[A-Za-z0-9_-]{50,}"),
    "SendGrid key": re.compile(r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}\b"),
    "Twilio key": re.compile(r"\bSK[0-9a-f]{32}\b"),
    "Telegram token": re.compile(r"\b\d{8,10}:AA[A-Za-z0-9_-]{33}\b"),
    "age key": re.compile(r"\bAGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}\b"),
    "JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    "password in a URL": re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{1,100}:(?P<value>[^\s/@\"'<>]{3,200})@"),
    "authorisation header": re.compile(
        r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+(?P<value>[\w.+/=~-]{16,})"),
    "password": re.compile(
        r"(?i)\b(?:[a-z0-9_.-]{0,40}(?:passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|auth[_-]?token|"
        r"private[_-]?key))[\"']?\s*(?:=>|:=|[:=])\s*[\"'](?P<value>[^\s\"'<>{}()]{8,200})[\"']"),
}
#: A value that only stands for one.
PLACEHOLDER = re.compile(
    r"(?i)^(?:.*(?:example|placeholder|changeme|change-me|dummy|redacted|your[_-]|my[_-]?|password|passwd|secret|token|xxxx|"
    r"\*\*\*|\.\.\.|user|test|foo|bar|1234).*|(.)\1*|[a-z_-]+|%\w+%|\$.*)$")
#: Bits a character, below which a value is a word and not a key.
LEAST_ENTROPY = 3.0

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}(?P<top>[A-Za-z]{2,24})(?![\w-])")
PHONE = re.compile(r"(?<![\w.+/-])(?:\+|00)\d{1,3}[ ./-]?"
                   r"(?:\(0?\d{1,4}\)[ ./-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,5}(?![\w-])"
                   r"|(?<![\w.+/-])\(?[2-9]\d{2}\)?[ .-][2-9]\d{2}[ .-]\d{4}(?![\w-])"
                   r"|(?<![\w.+/-])0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5}(?![\w-])")
CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-])")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")
#: Domains that documents use, and nobody has (RFC 2606, RFC 6761).
NOBODY = re.compile(r"(?i)@(?:[\w-]+\.)*(?:example(?:\.\w+)?|[\w-]+\.(?:test|invalid|local|localhost)|"
                    r"(?:noreply|users\.noreply)\.[\w.]+)$")


def secrets(text: str) -> Iterator[str]:
    """The names of the forms of secrets that a text holds, each once."""
    for name, pattern in SECRETS.items():
        if any(_real(found) for found in pattern.finditer(text)):
            yield name


def personal(text: str) -> Iterator[str]:
    """The names of the kinds of personal data that a text holds, each once."""
    if any(not NOBODY.search(found.group()) for found in EMAIL.finditer(text)):
        yield "e-mail address"
    if any(luhn(found.group()) for found in CARD.finditer(text)):
        yield "card number"
    if any(iban(found.group()) for found in IBAN.finditer(text)):
        yield "IBAN"
    if PHONE.search(IBAN.sub(" ", CARD.sub(" ", text))):
        yield "phone number"
    if SSN.search(text):
        yield "social security number"


def flags(text: str) -> tuple[str, ...]:
    """All that is to be flagged in a text."""
    return (*secrets(text), *personal(text))


def luhn(number: str) -> bool:
    """Whether the digits are a card's: 13 to 19, by Luhn's checksum (ISO/IEC 7812-1), and not all the
    same."""
    digits = [int(letter) for letter in number if letter.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 2:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(number: str) -> bool:
    """Whether an IBAN's checksum holds (ISO 13616, mod 97)."""
    compact = number.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    turned = compact[4:] + compact[:4]
    return int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _real(found: re.Match[str]) -> bool:
    """Whether a match is a secret and not a stand-in for one."""
    value = found.groupdict().get("value")
    if value is None:
        return True
    return not PLACEHOLDER.match(value) and (entropy(value) >= LEAST_ENTROPY or any(map(str.isdigit, value)))


def entropy(text: str) -> float:
    """Shannon's, in bits a character."""
    shares = [text.count(letter) / len(text) for letter in set(text)]
    return -sum(share * log2(share) for share in shares)
