"""FitNet, AT, ReviewKD and MGD: any two layouts, grids and numbers of stages; terms, state, options."""

from itertools import product

import pytest
import torch

from crossdistill.bridges.layout import as_map
from crossdistill.contracts import Batch, Outputs, StageSpec
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.registry import METHODS
from crossdistill.settings import resolve_options
from oracles import layouts
from oracles import model_specs as specs
from oracles import stage_losses as oracle

NAMES = ("fitnet", "at", "reviewkd", "mgd")
WITH_PARAMETERS = ("fitnet", "reviewkd", "mgd")
every_method = pytest.mark.parametrize("name", NAMES)

STAGES = {
    "maps": [StageSpec(4 * 2**i, 4 * 2**i, "NCHW", 0, (8 >> i, 8 >> i)) for i in range(4)],
    "channels last": [StageSpec(6 * 2**i, 4 * 2**i, "NHWC", 0, (6, 4 - i)) for i in range(3)],
    "class token": [StageSpec(8, 8, "NLC", 1, (4, 4))] * 5,
    "tokens": [StageSpec(6, 8, "NLC", 0, (3, 5))] * 2,
    "unrolled": [StageSpec(5, 4, "NLC", 0, (8, 4), 2), StageSpec(10, 8, "NLC", 0, (4, 2), 1)],
    "one position": [StageSpec(7, 32, "NCHW", 0, (1, 1))],
    "small": [StageSpec(3, 8, "NHWC", 0, (2, 3)), StageSpec(4, 16, "NHWC", 0, (2, 2))],
    "six stages": [StageSpec(4, 2, "NCHW", 0, (9 - i, 7)) for i in range(6)],
}


def network(kind):
    return specs.model(kind, "cnn", STAGES[kind][-1].channels + 1, STAGES[kind], 6)


def outputs_of(spec, size=4, seed=0, dtype=torch.float32):
    """Random stages and embedding that require gradients; no logits, since none of the methods asks for them."""
    random = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()

    stages = []
    for stage in spec.stages:
        rows, columns = stage.grid
        shapes = {
            "NCHW": (stage.channels, rows, columns),
            "NHWC": (rows, columns, stage.channels),
            "NLC": (stage.num_prefix_tokens + rows * columns, stage.channels),
        }
        stages.append(tensor(size, *shapes[stage.layout]))
    return Outputs(embedding=tensor(size, spec.embedding_dim), stages=tuple(stages))


def batch_of(size=4, epoch=0):
    return Batch(images={}, target=torch.zeros(size, dtype=torch.int64), sample_id=torch.arange(size), epoch=epoch)


def build(name, student="maps", teacher="class token", seed=0, **options):
    torch.manual_seed(seed)
    method = METHODS.get(name).value
    resolved = resolve_options(name, method.build, options)
    return method.build(network(student), network(teacher), num_classes=6, **resolved)


def compare(method, student="maps", teacher="class token", size=4, **changes):
    """The terms with random outputs, and the student's outputs."""
    own, other = outputs_of(network(student), size, **changes), outputs_of(network(teacher), size, seed=1, **changes)
    torch.manual_seed(2)
    return method(own, other, batch_of(size)), own, other


@every_method
def test_is_registered_with_its_facts(name):
    record = METHODS.get(name)
    assert set(record.facts) == {"title", "paper", "summary", "pick_when"}
    assert all(record.facts.values())
    assert record.value.needs == {"stages", "embedding"} if name == "reviewkd" else {"stages"}
    assert record.value.reads_stages
    assert not record.value.relates_samples
    assert not record.value.includes_cross_entropy


TEACHERS = ("maps", "class token", "unrolled", "one position")
PAIRS = [
    (name, student, teacher)
    for name, student, teacher in product(NAMES, STAGES, TEACHERS)
    if name != "at" or "one position" not in (student, teacher)  # refused, as the next test shows
]


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("name", "student", "teacher"), PAIRS)
def test_any_pair_has_finite_losses_and_gradients(name, student, teacher, size):
    method = build(name, student, teacher)
    terms, own, _ = compare(method, student, teacher, size)
    for term in terms.values():
        assert term.shape == ()
        assert term.dtype == torch.float32
        assert term.isfinite()
    sum(terms.values()).backward()
    learning = own.stages[-1:] if name == "mgd" else own.stages
    assert all(stage.grad.isfinite().all() for stage in learning)
    if name == "at":  # the one position of a map has all its energy
        learning = [own.stages[pair.number - 1] for pair in method.pairs if pair.grid != (1, 1)]
    assert all(stage.grad.abs().sum() > 0 for stage in learning)
    if name == "reviewkd":
        assert own.embedding.grad.abs().sum() > 0
    for parameter in method.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert size == 1 or parameter.grad.abs().sum() > 0


def test_at_refuses_a_pair_whose_maps_have_one_position():
    for student, teacher in (("one position", "maps"), ("maps", "one position")):
        with pytest.raises(UnsuitablePair, match="1x1 grid at every chosen stage") as error:
            build("at", student, teacher)
        assert f"student {student!r} and teacher {teacher!r}" in error.value.given
    with pytest.raises(UnsuitablePair):
        build("at", "maps", "class token", stages=[4])
    assert compare(build("at"))[0]["at_stage4"] == 0


@every_method
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("of_zeros", ["student", "teacher", "both"])
def test_features_of_zeros_have_finite_losses_and_gradients(name, size, of_zeros):
    method = build(name)
    own, other = outputs_of(network("maps"), size), outputs_of(network("class token"), size)
    with torch.no_grad():
        for outputs, role in ((own, "student"), (other, "teacher")):
            for one in (*outputs.stages, outputs.embedding):
                one *= of_zeros not in (role, "both")
    terms = method(own, other, batch_of(size))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    tensors = [*own.stages, *method.parameters()]
    assert all(one.grad.isfinite().all() for one in tensors if one.grad is not None)


@every_method
def test_equal_images_have_finite_losses_and_gradients(name):
    method = build(name)
    own, other = (
        Outputs(
            embedding=one.embedding.expand(3, -1),
            stages=tuple(stage.expand(3, *stage.shape[1:]) for stage in one.stages),
        )
        for one in (outputs_of(network("maps"), 1), outputs_of(network("class token"), 1))
    )
    terms = method(own, other, batch_of(3))
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


@every_method
def test_half_precision_inside_and_outside_autocast(name):
    for inside in (True, False):
        method = build(name)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            terms, own, _ = compare(method, dtype=torch.bfloat16)
        exact, _, _ = compare(build(name))
        for key, term in terms.items():
            assert term.dtype == torch.float32
            assert term.item() == pytest.approx(exact[key].item(), rel=0.05)
        sum(terms.values()).backward()
        assert own.stages[-1].grad.isfinite().all()


@every_method
def test_gradients_agree_with_finite_differences(name):
    method = build(name, "small", "tokens").double()
    own = outputs_of(network("small"), 2, dtype=torch.float64)
    other = outputs_of(network("tokens"), 2, seed=1, dtype=torch.float64)

    def loss(stage):
        torch.manual_seed(0)  # the same masks
        terms = method(Outputs(embedding=own.embedding, stages=(own.stages[0], stage)), other, batch_of(2))
        return sum(terms.values()) / method.weight

    assert torch.autograd.gradcheck(loss, (own.stages[1],))


@every_method
def test_prefix_tokens_are_left_out(name):
    method = build(name, "class token", "class token")
    own, other = (outputs_of(network("class token"), seed=seed) for seed in (0, 1))
    terms = []
    for shift in (0.0, 100.0):
        moved = []
        for outputs in (own, other):
            stages = tuple(torch.cat([stage[:, :1] + shift, stage[:, 1:]], dim=1) for stage in outputs.stages)
            moved.append(Outputs(embedding=outputs.embedding, stages=stages))
        torch.manual_seed(0)
        terms.append(method(*moved, batch_of()))
    assert terms[0] == terms[1]


@every_method
def test_unrolled_tokens_are_compared_in_their_place(name):
    """Tokens dealt out differently say the same as the map that they are."""
    dealt, plain = network("unrolled"), [StageSpec(*(5, 4, "NCHW", 0, (8, 4))), StageSpec(*(10, 8, "NCHW", 0, (4, 2)))]
    own, other = outputs_of(dealt), outputs_of(network("maps"), seed=1)
    rolled = Outputs(
        embedding=own.embedding,
        stages=tuple(layouts.as_map(feature, stage) for feature, stage in zip(own.stages, dealt.stages, strict=True)),
    )
    torch.manual_seed(0)
    first = build(name, "unrolled", "maps")
    torch.manual_seed(0)
    spec = specs.model("plain", "cnn", dealt.embedding_dim, plain, 6)
    second = METHODS.get(name).value.build(spec, network("maps"), num_classes=6)
    results = []
    for method, outputs in ((first, own), (second, rolled)):
        torch.manual_seed(3)
        results.append(method(outputs, other, batch_of()))
    for key, term in results[0].items():
        torch.testing.assert_close(results[1][key], term)


def stage_of(outputs, kind, number):
    """A stage as a map, in nested lists."""
    return as_map(outputs.stages[number - 1], STAGES[kind][number - 1]).tolist()


def facing(number):
    """Four stages of maps face five of tokens."""
    return {1: 2, 2: 3, 3: 4, 4: 5}[number]


def on_one_grid(own, other):
    rows, columns = (min(one, two) for one, two in zip(oracle.size(own)[2:], oracle.size(other)[2:], strict=True))
    return oracle.average(own, rows, columns), oracle.average(other, rows, columns)


def test_fitnet_agrees_with_the_slow_reference():
    method = build("fitnet", weight=3.0)
    terms, own, other = compare(method)
    assert list(terms) == [f"fitnet_stage{number}" for number in (1, 2, 3, 4)]
    for number in (1, 2, 3, 4):
        student, teacher = on_one_grid(stage_of(own, "maps", number), stage_of(other, "class token", facing(number)))
        projected = oracle.convolve(student, method.projections[str(number)].weight.tolist())
        expected = 3.0 * oracle.map_error(projected, teacher)
        assert terms[f"fitnet_stage{number}"].item() == pytest.approx(expected, rel=1e-5)


def test_fitnet_is_zero_where_the_projection_gives_the_teacher():
    method = build("fitnet", "maps", "maps")
    own = outputs_of(network("maps"))
    teacher = [method.projections[str(i)](stage) for i, stage in enumerate(own.stages, start=1)]
    terms = method(own, Outputs(stages=tuple(teacher)), batch_of())
    assert [term.item() for term in terms.values()] == [0.0] * 4


def test_at_agrees_with_the_slow_reference():
    terms, own, other = compare(build("at", power=3.0, weight=10.0))
    assert list(terms) == [f"at_stage{number}" for number in (1, 2, 3, 4)]
    for number in (1, 2, 3, 4):
        student, teacher = stage_of(own, "maps", number), stage_of(other, "class token", facing(number))
        energies = []
        for maps in (student, teacher):
            _, channels, rows, columns = oracle.size(maps)
            flat = oracle.attention_map(maps, 3)
            energies.append(
                [[[[one[i * columns + j] / channels for j in range(columns)] for i in range(rows)]] for one in flat]
            )
        expected = 10.0 * oracle.attention_transfer(*on_one_grid(*energies), power=1)
        assert terms[f"at_stage{number}"].item() == pytest.approx(expected, rel=1e-4)


def test_at_compares_energies_so_that_opposite_signs_do_not_cancel():
    """A coarser grid sees how much there is, not the mean of +1 and -1."""
    checkered = torch.tensor([1.0, -1.0]).repeat(4)[None, None, None].expand(1, 4, 8, 8).clone()
    own = Outputs(stages=(checkered, *outputs_of(network("maps"), 1).stages[1:]))
    other = Outputs(stages=(torch.ones(1, 4, 8, 8)[..., ::2, ::2],) + (torch.ones(1, 7, 1, 1),) * 3)
    spec = specs.model("teacher", "cnn", 7, [StageSpec(4, 8, "NCHW", 0, (4, 4))] + STAGES["one position"] * 3)
    method = METHODS.get("at").value.build(network("maps"), spec, num_classes=6, stages=[1])
    assert method(own, other, batch_of(1))["at_stage1"].item() == pytest.approx(0.0, abs=1e-9)


def test_reviewkd_compares_its_review_with_stages_and_embedding():
    method = build("reviewkd", weight=2.0)
    terms, own, other = compare(method)
    student = [*own.stages, own.embedding[:, :, None, None]]
    teacher = [torch.tensor(stage_of(other, "class token", facing(number))) for number in (1, 2, 3, 4)]
    grids = [(4, 4), (4, 4), (2, 2), (1, 1), (1, 1)]
    reduced = [torch.tensor(oracle.average(one.tolist(), *grid)) for one, grid in zip(teacher, grids[:4], strict=True)]
    reviewed = method.review(student, grids)
    assert list(terms) == [*(f"reviewkd_stage{number}" for number in (1, 2, 3, 4)), "reviewkd_embedding"]
    for term, result, target in zip(
        terms.values(), reviewed, [*reduced, other.embedding[:, :, None, None]], strict=True
    ):
        expected = 2.0 * oracle.hierarchical_context(result.tolist(), target.tolist())
        assert term.item() == pytest.approx(expected, rel=1e-5)


def test_reviewkd_warms_up_only_if_asked_to():
    own, other = outputs_of(network("maps")), outputs_of(network("class token"), seed=1)
    full = build("reviewkd")(own, other, batch_of(epoch=0))
    warming = build("reviewkd", warmup_epochs=20.0)
    for epoch, share in ((0, 0.0), (5, 0.25), (20, 1.0), (90, 1.0)):
        for key, term in warming(own, other, batch_of(epoch=epoch)).items():
            torch.testing.assert_close(term, share * full[key])


@pytest.mark.parametrize(("options", "width"), [({}, 33), ({"max_width": 8}, 8), ({"max_width": 600}, 33)])
def test_reviewkd_fuses_at_the_embeddings_width_up_to_a_limit(options, width):
    assert {fusion.project[0].out_channels for fusion in build("reviewkd", **options).review.fusions} == {width}


def test_mgd_compares_what_it_generates():
    method = build("mgd", weight=0.5)
    terms, own, other = compare(method)
    student, teacher = (
        torch.tensor(one) for one in on_one_grid(stage_of(own, "maps", 4), stage_of(other, "class token", 5))
    )
    torch.manual_seed(2)
    generated = method.generations["4"](student)
    expected = 0.5 * oracle.generation_error(generated.tolist(), teacher.tolist())
    assert list(terms) == ["mgd_stage4"]
    assert terms["mgd_stage4"].item() == pytest.approx(expected, rel=1e-5)


def test_mgds_defaults_are_those_of_the_released_classification():
    defaults = resolve_options("mgd", METHODS.get("mgd").value.build, {})
    assert defaults == {"stages": None, "mask_ratio": 0.15, "masked": "channels", "weight": 7e-5}
    assert set(build("mgd").generations) == {"4"}


@every_method
def test_stages_choose_what_learns_and_weights_scale_it(name):
    once, own, _ = compare(build(name, stages=[3, 2], weight=0.5))
    thrice, _, _ = compare(build(name, stages=[2, 3], weight=1.5))
    embedding = ["reviewkd_embedding"] if name == "reviewkd" else []
    assert list(once) == [f"{name}_stage2", f"{name}_stage3", *embedding]
    for key, term in once.items():
        torch.testing.assert_close(thrice[key], 3 * term)
    sum(once.values()).backward()
    assert [stage.grad is not None for stage in own.stages] == [False, True, True, False]


@every_method
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_refused(name, weight):
    with pytest.raises(InputError, match="weight of 0 or more"):
        METHODS.get(name).value.build(network("maps"), network("tokens"), num_classes=6, weight=weight)


@every_method
@pytest.mark.parametrize("stages", [[5], [0], [1, 1]])
def test_a_stage_that_does_not_exist_is_refused(name, stages):
    with pytest.raises(InputError, match="student 'maps' has 4 stages"):
        build(name, stages=stages)


@every_method
def test_no_stage_at_all_is_refused(name):
    with pytest.raises(InputError, match="at least one stage"):
        build(name, stages=[])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("at", {"power": 0.5}),
        ("at", {"power": 17.0}),
        ("at", {"power": float("inf")}),
        ("mgd", {"mask_ratio": 1.0}),
        ("mgd", {"mask_ratio": -0.1}),
        ("mgd", {"mask_ratio": float("nan")}),
        ("mgd", {"masked": "rows"}),
        ("reviewkd", {"max_width": 0}),
        ("reviewkd", {"warmup_epochs": -1.0}),
    ],
)
def test_other_options_are_refused(name, options):
    with pytest.raises(InputError, match=next(iter(options))):
        build(name, **options)


@every_method
@pytest.mark.parametrize("bare", ["student", "teacher"])
def test_networks_without_stages_are_unsuitable(name, bare):
    pair = {"student": network("maps"), "teacher": network("tokens")}
    pair[bare] = specs.model("bare", "cnn", 8, [], 6)
    with pytest.raises(UnsuitablePair, match=f"{bare} 'bare', which has no stages"):
        METHODS.get(name).value.build(pair["student"], pair["teacher"], num_classes=6)


@every_method
def test_heads_may_have_other_classes(name):
    teacher = specs.model("teacher", "cnn", 8, STAGES["tokens"], 11)
    METHODS.get(name).value.build(network("maps"), teacher, num_classes=6)


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_bridges_are_state_that_a_checkpoint_carries(name):
    first, second = build(name, seed=0), build(name, seed=1)
    assert compare(first)[0] != compare(second)[0]
    second.load_state_dict(first.state_dict())
    before, after = (compare(method)[0] for method in (first, second))
    assert all(torch.equal(after[key], term) for key, term in before.items())


def num_parameters(name, student, teacher):
    with torch.device("meta"):
        method = METHODS.get(name).value.build(student, teacher, num_classes=100)
    return sum(parameter.numel() for parameter in method.parameters())


def test_parameters_in_closed_form():
    student, teacher = specs.resnet18(), specs.swin(96)
    own, other = (64, 128, 256, 512), (96, 192, 384, 768)
    products = sum(a * b for a, b in zip(own, other, strict=True))
    assert num_parameters("fitnet", student, teacher) == products
    assert num_parameters("at", student, teacher) == 0
    assert num_parameters("mgd", student, teacher) == 512 * 768 + 768 + 2 * (9 * 768**2 + 768)
    assert num_parameters("mgd", student, student) == 2 * (9 * 512**2 + 512)
    own, other = (*own, 512), (*other, 768)
    levels = sum(a * 512 + 2 * 512 + 9 * 512 * b + 2 * b for a, b in zip(own, other, strict=True))
    assert num_parameters("reviewkd", student, teacher) == levels + 4 * (4 * 512 + 2)


def test_outputs_without_stages_are_a_programming_error():
    with pytest.raises(RuntimeError, match="no stages"):
        build("fitnet")(Outputs(logits=torch.zeros(2, 6)), outputs_of(network("class token")), batch_of(2))
