"""YAML that anybody may have written: small files stay small, whatever is in them."""

import time

import pytest
import yaml

from hpc.errors import InputError
from hpc.yamlfile import parse_yaml, read_yaml


def laughs(levels: int, width: int = 9, begin: str = "a") -> str:
    lines = [f"{begin}0: &{begin}0 [{','.join(['x'] * width)}]"]
    lines += [f"{begin}{i}: &{begin}{i} [{','.join([f'*{begin}{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merged(levels: int) -> str:
    lines = ["m0: &m0 {k: v}"]
    lines += [f"m{i}: &m{i} {{<<: [{','.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(9), "stand for more than 1000000 characters"),
        (laughs(40, 2), "stand for more than 1000000 characters"),
        (merged(9), "stand for more than 1000000 characters"),
        (f"s: &s {'x' * 2000}\nl: [{', '.join(['*s'] * 1000)}]", "stand for more than 1000000 characters"),
        ("a: " + "[" * 4000 + "]" * 4000, "more than 50 sections deep"),
        ("a: " + "{a: " * 4000 + "}" * 4000, "more than 50 sections deep"),
        ("\n".join("  " * i + "a:" for i in range(300)), "line 51 lies more than 50 sections deep"),
        ("- " * 300 + "a", "more than 50 sections deep"),
        ("x: &x 1\ny: &x 2\nz: *x", "duplicate anchor"),
        ("a: &a [*a]", "stands for nothing before it, or for itself"),
        ("a: &a\n  b: *a", "line 2 stands for nothing before it, or for itself"),
        ("a: *nowhere", "stands for nothing"),
        ("job: [/x] : {\n [/y", "in line"),
        ("a: 2001-99-99", "none that YAML knows"),
        (f"a: {'1' * 5000}", "none that YAML knows"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("? [a, b]\n: 1", "unhashable"),
        ("a: \x00", "control characters"),
        (b"\xff\xfe\xff", "."),
        (b"a: \xe9", "incomplete UTF-8 octet sequence at byte 3"),
        ("a: !!int x", "none that YAML knows"),
        ("<<: 1", "expected a mapping"),
    ],
)
def test_excess_and_nonsense_are_refused_in_one_line_and_at_once(text, said):
    start = time.process_time()
    with pytest.raises(InputError, match=said) as caught:
        parse_yaml(text)
    assert time.process_time() - start < 5
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "a: 1", "a: &a [1, {b: c}]\nd: [*a, *a]", "- 2001-01-01\n- ü"])
def test_honest_files_mean_what_they_meant(text, tmp_path):
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    assert parse_yaml(text) == read_yaml(tmp_path / "f.yaml") == yaml.safe_load(text)


def test_a_large_file_without_aliases_is_no_excess():
    paths = [f"/data/frame-{i:06d}.fits" for i in range(60_000)]
    assert parse_yaml("files: [" + ", ".join(paths) + "]") == {"files": paths}
