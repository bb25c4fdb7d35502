"""What is shown for actions, outcomes, actors and codes."""

import tomllib
from importlib import resources

import pytest

from lading.v1 import audit_log_pb2
from lading.v1.audit_log_pb2 import Actor, Event, Outcome
from lading_viewer import words


@pytest.mark.parametrize(
    ("name", "word", "icon", "tone", "fill"),
    [
        ("container.start", "START", "play", "ok", "solid"),
        ("container.stop", "STOP", "stop", "bad", "solid"),
        ("container.kill", "KILL", "cross", "bad", "solid"),
        ("container.remove", "REMOVE", "minus", "bad", "outline"),
        ("container.restart", "RESTART", "loop", "info", "outline"),
        ("container.create", "CREATE", "plus", "info", "outline"),
        ("container.pause", "PAUSE", "pause", "denied", "outline"),
        ("container.unpause", "UNPAUSE", "play", "denied", "outline"),
        ("container.list", "LIST", "", "pending", "plain"),
        ("container.exec", "EXEC", "prompt", "info", "outline"),
        ("container.drift", "DRIFT", "warning", "denied", "outline"),
        ("image.pull", "PULL", "down", "info", "outline"),
        ("rollout.breach", "rollout.breach", "cross", "bad", "plain"),
        ("rollout.list", "rollout.list", "", "pending", "plain"),
        ("rbac.role.assign", "rbac.role.assign", "", "pending", "plain"),
        ("task.update", "task.update", "", "pending", "plain"),
        ("odd", "odd", "", "pending", "plain"),
        ("", "—", "", "pending", "plain"),
    ],
)
def test_action_has_its_word_icon_and_colour(name: str, word: str, icon: str, tone: str, fill: str) -> None:
    look = words.action(name)
    assert (look.word, look.icon, look.tone, look.fill) == (word, icon, tone, fill)


def test_every_outcome_has_a_word_an_icon_and_an_ending() -> None:
    looks = [words.status(outcome) for outcome in Outcome.values()]
    assert len({look.word for look in looks}) == len({look.icon for look in looks}) == len(Outcome.values())
    assert all(outcome in words.ENDINGS for outcome in Outcome.values())


def test_only_success_is_green() -> None:
    green = [outcome for outcome in Outcome.values() if words.status(outcome).tone == "ok"]
    assert green == [audit_log_pb2.OUTCOME_SUCCESS]


def test_outcome_of_a_newer_server_is_shown_as_it_is() -> None:
    assert words.status(42).word == "42"
    assert words.code(Event(code=99)) == "CODE_99"


def test_codes_are_named() -> None:
    assert [words.code(Event(code=number)) for number in (0, 5, 7, 16)] == [
        "",
        "NOT_FOUND",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
    ]


@pytest.mark.parametrize(
    ("actor", "text", "icon"),
    [
        (
            Actor(type=audit_log_pb2.ACTOR_TYPE_USER, id="u1", email="ana@acme.example", name="Ana"),
            "ana@acme.example",
            "",
        ),
        (Actor(type=audit_log_pb2.ACTOR_TYPE_SERVICE, id="tasks"), "tasks", "key"),
        (Actor(type=audit_log_pb2.ACTOR_TYPE_AGENT, id="dock-1"), "dock-1", "agent"),
        (Actor(type=audit_log_pb2.ACTOR_TYPE_ANONYMOUS), "not signed in", ""),
    ],
)
def test_user_is_shown_by_email_else_id(actor: Actor, text: str, icon: str) -> None:
    data = words.user_data(actor)
    assert (data["text"], data["icon"]) == (text, icon)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 µs"), (0.00034, "340 µs"), (0.0412, "41 ms"), (1.406, "1.41 s"), (125, "2 min 5 s")]
)
def test_durations_have_a_fitting_unit(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_words_have_a_contrast_of_five_on_the_page(scheme: str) -> None:
    theme = tomllib.loads(resources.files("lading_viewer").joinpath(".streamlit/config.toml").read_text())["theme"][
        scheme
    ]
    for tone in ("green", "red", "violet", "blue", "gray"):
        assert contrast(theme[f"{tone}TextColor"], theme["backgroundColor"]) >= 5, tone


def contrast(one: str, other: str) -> float:
    """Ratio of WCAG 2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
