"""The base of every section of settings, and the types of their values."""

import string
from ipaddress import ip_network
from typing import Annotated, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Secret, ValidationInfo, field_validator

from bus import check_header_name
from infra.masking import mask_url


def _network(text: str) -> str:
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError(
            f"not an address or a network: {text!r}; expected an IP address or network, such as 10.0.0.1 or 10.0.0.0/8"
        ) from None
    if network.prefixlen == 0:
        raise ValueError(f"{text} covers every address; name the proxies' own addresses")
    return str(network)


HeaderName = Annotated[str, AfterValidator(check_header_name)]
Port = Annotated[int, Field(ge=0, le=65535)]
Network = Annotated[str, AfterValidator(_network)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Url(Secret[str]):
    """A URL whose password is never shown; `get_secret_value()` returns it whole."""

    def _display(self) -> str:
        return mask_url(self.get_secret_value())


def clean_text(text: str) -> str:
    """Return a value without the blanks, line ends and byte order mark that files and secret stores put around it.

    Raises:
        ValueError: the value is empty, contains an unprintable character, or is in quotation marks. The error does not
            quote the value, which may be secret.
    """
    text = text.strip(AROUND)
    if not text:
        raise ValueError("value is empty; remove the setting to use its default")
    for each in text:
        if not each.isprintable():
            raise ValueError(f"value contains the unprintable character U+{ord(each):04X}; remove it")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        raise ValueError("value is in quotation marks, which would be part of it; remove them")
    return text


AROUND = string.whitespace + "\ufeff\u00a0\u200b"
"""Characters around a value that are not part of it."""


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _clean(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, Url):
            return Url(clean_text(value.get_secret_value()))
        if isinstance(value, bool):
            raise ValueError("expected a number or text, not true or false")  # noqa: TRY004 - pydantic reports ValueErrors
        if not isinstance(value, str):
            return value
        field = cls.model_fields[info.field_name or ""]
        if not value.strip(AROUND) and type(None) in get_args(field.annotation):
            return None
        return clean_text(value)
