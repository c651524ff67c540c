"""The redactor: no form of a known secret gets through, nor anything that looks like one; the text around it stays."""

from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.engine import Input, Target
from tests.fuzz.forms import FORMS, around, secrets, simple_secrets
from tests.leaks import leaks
from worker.core.redact import REDACTED, redact_value, redacted, redacted_lines
from worker.core.redact import leaks as leaks_one

NOTHING, HIDDEN = "nothing to hide", "hidden although nobody named it"


def _whole(form: str) -> Callable[[str, str, str], Input]:
    return lambda secret, before, after: {
        "case": f"whole, {form}",
        "secret": secret,
        "told": FORMS[form](secret),
        "text": f"{before} {FORMS[form](secret)} {after}",
    }


def _cut(form: str) -> Callable[[str, str, int], Input]:
    def made(secret: str, before: str, share: int) -> Input:
        told = FORMS[form](secret)
        return {
            "case": f"cut, {form}",
            "secret": secret,
            "told": told,
            "text": f"{before} {told[: len(told) * share // 100]}",
        }

    return made


def _unknown(name: str, secret: str, before: str) -> Input:
    return {"case": HIDDEN, "secret": "", "told": secret, "text": f"{before} {name}{secret}"}


_NAMES = st.sampled_from(
    [
        "",
        "client_secret=",
        '"client_secret": "',
        "'secret_id': '",
        "X-Vault-Token: ",
        "VAULT_TOKEN=",
        "%22secret_id%22:%22",
    ]
)
_TOKENS = st.builds("eyJ{}.{}.{}".format, *[simple_secrets] * 3)


def run(value: Input) -> str:
    text, secret = value["text"], value["secret"]
    left = redacted(text, *filter(None, [secret]))
    assert left.isprintable()
    assert redacted(left) == left, "twice is not once"
    assert redacted_lines(text, secret).count("\n") == text.count("\n")
    assert redact_value({"field": [left]}) == {"field": [left]}
    assert not leaks(left, [secret or value["told"]]), left
    before = text.partition(" ")[0]
    assert left.startswith(" ".join(before.split())), "what stands around it went too"
    if REDACTED not in left:
        return NOTHING
    if value["case"].startswith("whole"):
        assert leaks_one(text, secret)
        assert not leaks_one(left, secret)
    case: str = value["case"]
    return case


TARGET = Target(
    "redactor",
    {
        **{f"whole, {form}": st.builds(_whole(form), secrets, around, around) for form in FORMS},
        **{f"cut, {form}": st.builds(_cut(form), secrets, around, st.integers(60, 99)) for form in FORMS},
        HIDDEN: st.builds(_unknown, _NAMES, _TOKENS, around),
        NOTHING: st.builds(
            lambda text, secret: {"case": NOTHING, "secret": secret, "told": "", "text": text}, around, secrets
        ),
    },
    run,
)
