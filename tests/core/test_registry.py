import pytest

from fewshot.core.errors import FewshotError
from fewshot.core.registry import Registry, UnknownName
from fewshot.methods import create_method


def test_duplicate_names_raise():
    registry = Registry("thing")
    registry.register("a")(1)
    with pytest.raises(FewshotError, match="already registered"):
        registry.register("a")(2)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'protonet'"):
        create_method("proto-net")
    with pytest.raises(UnknownName, match="known: "):
        create_method("zzzz")
    with pytest.raises(FewshotError, match="parameter of protonet 'temprature'; did you mean 'temperature'"):
        create_method("protonet", temprature=2)


def test_names_are_sorted():
    registry = Registry("thing")
    for name in ("b", "a"):
        registry.register(name)(name)
    assert list(registry) == ["a", "b"] and len(registry) == 2 and "a" in registry
