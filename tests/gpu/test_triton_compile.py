"""What the Triton engine launches, cross-compiled: that it fits every GPU it is for. Machine code is
counted, nothing is run."""

from __future__ import annotations

import collections
import os
import pickle
import re
import subprocess
import sys

import pytest
from crosscompile import ROOT, told

pytest.importorskip("triton")

CHILD = "import test_triton_compile; test_triton_compile.answer()"
COMMON = (  # nearly every launch of a deep CIFAR network is one of these, at three sizes
    ("conv_rolling_forward 16, 32²", "scale-shift ReLU"),
    ("conv_rolling_forward 16, 32²", "+ residual ReLU → z mask"),
    ("gradient_rolling 16, 32²", "mask from y"),
    ("gradient_rolling 16, 32²", "+ 1, mask from bits"),
)

# bytes a thread at most, at 64 channels; float32's three products hold twice the operands: for who checks
# results rather than trains
SPILLED = {
    ("cifar", "bf16"): 0,
    ("imagenet", "bf16"): 16,
    ("cifar", "fp16"): 56,
    ("cifar", "tf32"): 56,
    ("cifar", "fp32"): 2304,
}
CAPABILITIES = (80, 86, 89, 90, 100, 120)
EARLY = 8  # more, of those that begin early, which keep an address across the wait


def compiled(family, dtype, capability, only="", **switches):
    """Return each distinct launch's title, form, whether it multiplies, the limit of shared memory and the
    bench.audit.cost.Cost, and the launch's arguments by the number that PTX gives them; of a process of its
    own, since where Triton interprets nothing can be compiled."""
    return told(CHILD, (family, dtype, capability, only, switches), 1800)


def answer():
    """The other process's part. `only`: a part of the kernels' names, or titles and forms."""
    from bench.audit.__main__ import SHARED
    from bench.audit.table import compiled_rows

    family, dtype, capability, only, switches = pickle.loads(sys.stdin.buffer.read())
    names = isinstance(only, str)
    rows = compiled_rows(
        family,
        dtype,
        capability,
        lambda row: only in row.title if names else (row.title, row.form) in only,
        **switches,
    )
    found = []
    for row in rows:
        launched_so = dict(row.launch.options).get("launch_pdl", False)
        # the one without the other is a race
        assert row.launch["PDL"] == launched_so == switches.get("dependent", False)
        arguments = [name for name, _ in row.launch.signature]
        found.append((row.title, row.form, row.multiplies, SHARED[capability] * 1024, row.cost, arguments))
    sys.stdout.buffer.write(pickle.dumps(found))


def check(found, *kind, more=0):
    for title, form, multiplies, limit, cost, _ in found:
        assert cost.spills <= SPILLED[kind] + more, (title, form)
        assert cost.shared <= limit, (title, form)
        assert cost.matrix > 0 or not multiplies, (title, form)


@pytest.mark.parametrize("wanted", [COMMON[1::2], pytest.param(COMMON[::2], marks=pytest.mark.slow)])
def test_the_common_launches(wanted):
    found = compiled("cifar", "bf16", 90, wanted)
    check(found, "cifar", "bf16")
    assert {(title, form) for title, form, *_ in found} == set(wanted)
    for _, form, _, _, cost, _ in found:
        assert cost.count("HGMMA") > 0 and cost.wide_loads > 0
        assert ("max.NaN" in cost.ptx) == ("ReLU" in form)  # else a NaN would come out of it as 0
        assert "griddepcontrol" not in cost.ptx  # which PTX knows from sm_90 on


BEGUN, WAITED = "griddepcontrol.launch_dependents", "griddepcontrol.wait"
DEPENDENT = (
    COMMON[0], COMMON[2], ("conv_forward 16→32, 1×1/2", "z"), ("gradient 64→32, 1×1/2", "plain"),
    ("settle_forward 16", ""), ("settle_backward 16", ""), ("form 64", "+ residual ReLU → z mask"),
)  # fmt: skip


def before_the_wait(ptx, arguments):
    """The arguments whose memory is read, or what else is done to memory of the device, by the
    instructions above the wait."""
    above = ptx[ptx.index("{\n") : ptx.index(WAITED)]
    ways = re.findall(r"\bbra\S*\s+(\$\w+)", above)
    # none leads past the wait: every thread comes to it
    assert "ret;" not in above and all(f"\n{way}:" in above for way in ways)
    origins, done = collections.defaultdict(set), set()
    for line in above.splitlines():
        parts = re.match(r"\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(.*);", line)
        if parts is None:
            continue
        name, rest = parts.groups()
        registers = re.findall(r"%r?[a-z]+\d+", rest)
        if re.match(r"(ld|st|red|atom|cp|prefetch)\b", name) and not re.match(
            r"(ld|st)\.(param|shared)", name
        ):
            where = re.search(r"\[\s*(%\w+)", rest)
            done |= (origins[where[1]] or {"?"}) if name.startswith("ld.global") else {name}
        elif registers:
            given = {arguments[int(i)] for i in re.findall(r"_param_(\d+)", rest)}
            origins[registers[0]] |= given.union(*(origins[register] for register in registers[1:]))
    return done


def check_dependent(found):
    for title, form, _, _, cost, arguments in found:
        assert (
            cost.ptx.count(BEGUN)
            == cost.ptx.count(WAITED)
            == cost.count("PREEXIT")
            == cost.count("ACQBULK")
            == 1
        ), (title, form)
        assert cost.ptx.index(BEGUN) < cost.ptx.index(WAITED)
        assert before_the_wait(cost.ptx, arguments) <= {"w_ptr"}, (title, form)
        # the same kernel, were it to wait at its end
        whole, end, rest = cost.ptx.replace(WAITED, "").rpartition("\tret;")
        late = before_the_wait(f"{whole}\t{WAITED};\n{end}{rest}", arguments)
        assert any(name.startswith("st.global") for name in late) and late & {*arguments} > {"w_ptr"} & {
            *arguments
        }, (title, form)


@pytest.mark.slow
def test_kernels_that_begin_early_touch_frozen_weights_alone():
    found = compiled("cifar", "bf16", 90, DEPENDENT, dependent=True)
    check(found, "cifar", "bf16")
    check_dependent(found)
    assert {(title, form) for title, form, *_ in found} == set(DEPENDENT)
    early = {
        title.split()[0] for title, _, _, _, cost, arguments in found if before_the_wait(cost.ptx, arguments)
    }
    assert early == {"conv_rolling_forward", "gradient_rolling"}  # which have their weights by then


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, capability", [*(("fp16", c) for c in CAPABILITIES), ("tf32", 86), ("tf32", 90), ("fp32", 86)]
)
def test_every_capability(dtype, capability):
    """Every rolling launch of a CIFAR network of any depth. 89 and 120 hold what 86 does."""
    found = compiled("cifar", dtype, capability, "rolling")
    check(found, "cifar", dtype)
    assert all(cost.wide_loads > 0 for *_, cost, _ in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, dtype, capability, only",
    [("cifar", "bf16", 90, ""), ("cifar", "fp16", 100, ""), ("cifar", "fp16", 120, ""), ("cifar", "tf32",
    90, "rolling"),
     ("imagenet", "bf16", 90, "moments"), ("imagenet", "bf16", 90, "dy")],
)  # fmt: skip
def test_every_kernel_that_begins_early(family, dtype, capability, only):
    found = compiled(family, dtype, capability, only, dependent=True)
    assert found
    check(found, family, dtype, more=EARLY)
    check_dependent(found)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_every_kernel(family):
    check(compiled(family, "bf16", 90), family, "bf16")


def plain(code, **environment):
    """Return what Python prints of this code, in a process where Triton compiles."""
    environment = {n: value for n, value in os.environ.items() if n != "TRITON_INTERPRET"} | environment
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


COUNTED = """
from bench.audit.launches import launches

for capability in (90, 80, 90):
    found = {}
    for one, count in launches("cifar", "bf16", capability).items():
        word = one.kernel.__name__.split("_")[0]
        found[word] = found.get(word, 0) + count
    print(found["conv"], found["gradient"], found["form"], sum(found.values()), end="; ")
"""


@pytest.mark.slow
def test_every_launch_is_counted_whatever_was_counted_before():
    """Of ResNet-20's 21 convolutions one forward and one gradient each (of the stem, its BatchNorm's); the
    merges of statistics between them depend on the GPU."""
    assert plain(COUNTED) == "21 21 1 60; 21 21 1 67; 21 21 1 60;"


STAGE = """
import os
from bench.gpu import compile

if __name__ == "__main__":
    launched = compile.launched("cifar", "fp16", False, 90)
    tasks = [task for task in launched if task[1] == "conv_forward_kernel"]
    assert len(tasks) > 2
    assert [compile.compiled(task, 90) for task in tasks[:2]] == ["", ""]
    made = set(os.listdir(os.environ["TRITON_CACHE_DIR"]))
    assert [compile.compiled(task, 90) for task in tasks[:2]] == ["", ""]
    assert set(os.listdir(os.environ["TRITON_CACHE_DIR"])) == made
    other = next(task for task in launched if task[1] != tasks[0][1])
    wrong = compile.compiled((*tasks[0][:2], other[2]), 90)
    print(len(made), wrong)
"""


@pytest.mark.slow
def test_the_compile_stage_fills_the_cache(tmp_path):
    made, _, wrong = plain(STAGE, TRITON_CACHE_DIR=str(tmp_path)).partition(" ")
    assert int(made) >= 2 and wrong.startswith("conv_forward_kernel: RuntimeError")
