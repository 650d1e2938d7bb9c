import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.neox_arguments.aliases import ALIASES
from megatron.neox_arguments.coerce import coerce
from megatron.neox_arguments.documentation import field_docs, reference_markdown
from megatron.neox_arguments.fields import field_table
from megatron.neox_arguments.presets import PRESETS
from megatron.neox_arguments.sections import SECTIONS
from megatron.neox_arguments.unsupported import UNSUPPORTED
from odm.methods import METHODS

ROOT = Path(__file__).resolve().parents[3]
FORK = ROOT / "../shared/spec/fork.md"


DECLARED = [c for section in SECTIONS.values() for c in (section.answers, section.keys) if c]


@pytest.mark.parametrize("declared", DECLARED, ids=lambda declared: declared.__name__)
def test_every_field_is_documented(declared):
    docs = field_docs(declared)
    assert list(docs) == list(declared.__annotations__)
    assert all(text.endswith(".") and text.isascii() for text in docs.values())


def test_the_reference_is_up_to_date():
    text = (ROOT / "configs/neox_arguments.md").read_text(encoding="utf-8")
    assert text == reference_markdown(), "run python configs/gen_docs.py"


def test_the_generator_checks_without_writing(tmp_path):
    command = [sys.executable, str(ROOT / "configs/gen_docs.py"), "--check"]
    assert subprocess.run(command, cwd=tmp_path).returncode == 0


def test_tables_name_only_known_keys():
    known = set(field_table())
    targets = {alias.new.partition(".")[0] for alias in ALIASES}
    assert {alias.old for alias in ALIASES} | targets <= known
    assert all(set(values) <= known for values in PRESETS.values())


def test_the_reference_says_what_has_no_effect():
    text = reference_markdown()
    for key in ("num_workers", "dump_state", "char_level_ppl"):
        entry = text[text.index(f"- **{key}**") :].split("\n- **")[0]
        assert "No effect in this version: " in entry


def test_the_reference_says_what_is_refused_and_what_is_not():
    text = reference_markdown()

    def entry(key):
        return text[text.index(f"- **{key}**") :].split("\n- **")[0]

    for key in ("attention_config",):
        assert "efused" in entry(key)
    assert "efused" not in entry("async_save")


def test_every_key_that_is_not_supported_has_a_type_a_default_and_a_reason():
    for key, row in UNSUPPORTED.items():
        assert coerce(row.default, row.type) == row.default, key
        assert row.reason
        assert not any(row.is_asked_for(value) for value in (None, row.default)), key


def words_of_the_program():
    """Words of all sources but the declarations of keys and the tables of what is not honoured."""
    declarations = ("sections", "unsupported.py", "documentation.py", "presets.py")
    sources = [*ROOT.glob("*.py"), *(ROOT / "megatron").rglob("*.py")]
    kept = [path for path in sources if not any(part in path.parts for part in declarations)]
    return set(re.findall(r"\w+", " ".join(path.read_text(encoding="utf-8") for path in kept)))


def test_every_key_is_read_refused_or_noted():
    written_in_parts = {f"{name}_data_weights" for name in ("train", "valid", "test")}
    only_passed_on = {"no_ssh_check", "force_multi", "git_hash"}
    options_of_methods = {name for method in METHODS.values() for name in method.settings}
    words = words_of_the_program() | options_of_methods
    silent = {
        field.name
        for field in field_table().values()
        if field.name not in UNSUPPORTED and not {field.name, field.answer} & words
    }
    silent -= written_in_parts | only_passed_on | {alias.old for alias in ALIASES}
    assert not silent


def test_sources_use_only_fields_and_public_methods_of_neox_args():
    # the tests of GPT-NeoX scan our sources with this expression
    pattern = re.compile(r"(?<=neox_args\.).{2,}?(?=[\s\n(){}+-/*;:,=,[,\]])")
    methods = {"deepspeed_config", "get_deepspeed_main_args", "update_value"}
    found = set()
    for path in (ROOT / "megatron").rglob("*.py"):
        found |= set(pattern.findall(path.read_text(encoding="utf-8")))
    assert found - methods <= set(field_table())


def test_every_key_of_the_research_code_is_known():
    if not FORK.is_file():
        pytest.skip("the specification beside the checkout is not there")
    text = FORK.read_text(encoding="utf-8")
    table = text[text.index("### 4.5 ") : text.index("### 4.6 ")]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]
    names = {n.strip() for cell in cells if "**" not in cell for n in re.split("[,/]", cell)}
    mixing = text[text.index("### 1.2 ") : text.index("### 1.3 ")]
    names |= set(re.findall(r"^\| `(\w+)` \|", mixing, flags=re.MULTILINE))
    assert len(names) > 200
    assert names - {"field"} <= set(field_table())


def test_reading_a_configuration_loads_neither_torch_nor_numpy_and_is_quick():
    code = (
        "import sys, time; start = time.process_time(); import megatron; megatron.NeoXArgs; "
        "seconds = time.process_time() - start; "
        "heavy = {'torch', 'numpy', 'deepspeed', 'transformers'} & set(sys.modules); "
        "print(sorted(heavy), round(seconds, 3)); sys.exit(bool(heavy) or seconds > 1.0)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_package_has_a_version_and_refuses_other_names():
    import megatron

    assert re.fullmatch(r"\d+\.\d+\.\d+", megatron.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = megatron.nothing
