"""FBT on small networks of timm: its total, what trains what, and the traps of its specification."""

import functools
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from crossdistill import losses
from crossdistill.contracts import Batch, Modules, Outputs
from crossdistill.engine.learner import Learner
from crossdistill.engine.optimize import build_optimizer
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.methods.fbt import FBT, PAIRS
from crossdistill.models import build
from crossdistill.teachers import FrozenTeacher
from oracles import fbt as oracle
from samples.training import settings

NUM_CLASSES = 5
TARGET = torch.tensor([0, 4, -1, 2])
PAIR_WEIGHTS = [f"{name}_weight" for name in PAIRS]
COLUMNS = {"CNN student": ("test_convnext", "test_vit"), "CNN teacher": ("test_vit", "test_convnext")}
every_column = pytest.mark.parametrize("column", COLUMNS)


@functools.cache
def cached(name):
    torch.manual_seed(0)
    # narrower than the CNN, so that features need projecting
    args = {"embed_dim": 48} if name == "test_vit" else {}
    return build(name, num_classes=NUM_CLASSES, image_size=32, **args)


def network(name):
    return deepcopy(cached(name))


def images(batch_size=4):
    return torch.randn(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def batch_of(target=TARGET):
    shown = images(len(target))
    return Batch({"student": shown, "teacher0": shown}, target, torch.arange(len(target)))


class Trio:
    """Student, teacher and method of one column, and one step of them."""

    def __init__(self, column="CNN student", names=None, dtype=torch.float32, **options):
        own, other = names or COLUMNS[column]
        self.student, self.teacher = network(own).to(dtype).train(), FrozenTeacher(network(other).to(dtype))
        modules = Modules(self.student, self.teacher.model)
        torch.manual_seed(1)
        self.method = FBT.build(
            self.student.spec, self.teacher.spec, num_classes=NUM_CLASSES, modules=modules, **options
        ).to(dtype)
        self.dtype = dtype

    def step(self, target=TARGET, ids=None):
        shown = images(len(target)).to(self.dtype)
        batch = replace(batch_of(target), images={"student": shown, "teacher0": shown})
        if ids is not None:
            batch = replace(batch, sample_id=torch.tensor(ids))
        return self.method(self.student(shown), self.teacher.signals(batch), batch)

    def groups(self):
        """The student's parameters: those of its stages but the last, the classifier's, and the rest."""
        stage = self.student(images().to(self.dtype)).stages[-2]
        named = dict(self.student.named_parameters())
        reached = torch.autograd.grad(stage.sum(), named.values(), allow_unused=True)
        early = {name for name, gradient in zip(named, reached, strict=True) if gradient is not None}
        head = {f"net.head.{name}" for name, _ in self.student.net.get_classifier().named_parameters()}
        head |= {f"net.head.fc.{name}" for name, _ in self.student.net.get_classifier().named_parameters()}
        head &= set(named)
        assert early
        assert head
        return {"early": early, "late": set(named) - early - head, "head": head}

    def reached(self):
        """Which groups got a gradient, and whether the bridge did."""
        named = dict(self.student.named_parameters())

        def any_gradient(parameters):
            return any(one.grad is not None and one.grad.abs().sum() > 0 for one in parameters)

        found = {group for group, names in self.groups().items() if any_gradient(named[name] for name in names)}
        return found | ({"bridge"} if any_gradient(self.method.bridge.parameters()) else set())


def only(pair, kind):
    weights = dict.fromkeys(PAIR_WEIGHTS, 0.0) | {f"{pair}_weight": 1.0}
    return weights | ({"logit_weight": 0.0} if kind == "nce" else {"nce_weight": 0.0})


# column, pair, kind -> what is trained: section 3.5, with the classifier shown apart (features do not pass it)
TRAINED = {
    ("CNN student", "teacher_fusion"): {"early", "bridge"},
    ("CNN teacher", "teacher_fusion"): {"late", "bridge"},
    ("CNN student", "fusion_student"): {"early", "late"},
    ("CNN teacher", "fusion_student"): {"early", "late"},
    ("CNN student", "teacher_student"): {"early", "late"},
    ("CNN teacher", "teacher_student"): {"early", "late"},
}


@pytest.mark.parametrize("kind", ["nce", "logits"])
@pytest.mark.parametrize(("column", "pair"), TRAINED, ids=lambda one: one)
def test_each_term_alone_trains_what_the_table_says(column, pair, kind):
    trio = Trio(column)
    terms = trio.step()
    terms[f"{pair}_{kind}"].backward()
    expected = set(TRAINED[column, pair])
    in_own_head = pair != "teacher_fusion" or column == "CNN teacher"
    assert trio.reached() == expected | ({"head"} if kind == "logits" and in_own_head else set())
    assert all(parameter.grad is None for parameter in trio.teacher.parameters())


@every_column
def test_hard_labels_train_the_whole_student_and_nothing_else(column):
    trio = Trio(column)
    learner = Learner(trio.student, trio.method, settings(), several=False)
    batch = batch_of()
    learner(batch, trio.teacher.signals(batch))["cross_entropy"].backward()
    assert trio.reached() == {"early", "late", "head"}


@every_column
def test_all_terms_together_leave_no_parameter_without_a_gradient_but_the_teachers(column):
    trio = Trio(column)
    sum(trio.step().values()).backward()
    for name, parameter in [*trio.student.named_parameters(), *trio.method.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in trio.teacher.parameters())


@every_column
def test_the_fused_network_learns_from_the_student_where_it_is_not_detached(column):
    trio = Trio(column, detach_fusion=False)
    trio.step()["fusion_student_nce"].backward()
    assert "bridge" in trio.reached()


def test_hard_labels_for_the_fused_network_are_an_option():
    trio = Trio(fusion_ce_weight=2.0)
    terms = trio.step()
    terms["fusion_cross_entropy"].backward()
    assert trio.reached() == {"early", "bridge"}
    logits = direct(trio)["fusion"].logits
    labelled = [0, 1, 3]
    per_sample = torch.nn.functional.cross_entropy(logits[labelled], TARGET[labelled], reduction="none")
    torch.testing.assert_close(terms["fusion_cross_entropy"], 2.0 * per_sample.sum() / 4)
    assert "fusion_cross_entropy" not in Trio().step()


def direct(trio, target=TARGET):
    """What the three networks answer, each run on its own from the images."""
    shown = images(len(target)).to(trio.dtype)
    first, last = (trio.student, trio.teacher.model)
    if trio.student.spec.family != "cnn":
        first, last = last, first
    middle = trio.method.bridge(first.forward_until(shown, len(first.spec.stages) - 1))
    fusion = last.forward_from(middle, len(last.spec.stages) - 1)
    return {"student": trio.student(shown), "teacher": trio.teacher.model(shown), "fusion": fusion}


@every_column
@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [5, 2, 5, -1], [-1, -1, -1, -1]], ids=str)
def test_the_total_is_that_of_the_formula_written_out(column, ids):
    """Section 3.4; trap 4: leaving out any of the three pairs would show. The same image may be there twice."""
    trio = Trio(column, dtype=torch.float64, gamma=1.3, temperature=2.0)
    target = torch.tensor([3, 0, 2, 2])
    terms = trio.step(target, ids)
    assert set(terms) == {f"{pair}_{kind}" for pair in PAIRS for kind in ("nce", "logits")}
    known = direct(trio, target)
    projectors = {
        PAIRS[name]: (contrast.learner_projector.weight.tolist(), contrast.learner_projector.bias.tolist())
        for name, contrast in trio.method.contrasts.items()
        if isinstance(contrast.learner_projector, torch.nn.Linear)
    }
    beside = {"CNN student": ("fusion", "student"), "CNN teacher": ("teacher", "fusion")}[column]
    assert set(projectors) == {("teacher", "student"), beside}
    (temperature,) = {contrast.temperature().item() for contrast in trio.method.contrasts.values()}
    assert temperature == pytest.approx(0.07)
    expected = oracle.total(
        {who: outputs.embedding.tolist() for who, outputs in known.items()},
        {who: outputs.logits.tolist() for who, outputs in known.items()},
        target.tolist(),
        ids,
        projectors,
        temperature=temperature,
        gamma=1.3,
        tau=2.0,
    )
    assert sum(terms.values()).item() == pytest.approx(expected, rel=1e-9)


def test_stage_four_of_the_teacher_is_differentiable_though_it_is_frozen():
    """Trap 1: under no-grad neither the bridge nor the student would get anything of teacher -> fused."""
    trio = Trio("CNN student", **only("teacher_fusion", "logits"))
    (loss,) = trio.step().values()
    loss.backward()
    assert trio.method.bridge.patch_embedding.weight.grad.abs().sum() > 0
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in trio.student.parameters())


@every_column
def test_training_mode_of_the_method_never_reaches_the_teacher(column):
    """Trap 2."""
    trio = Trio(column, names=("test_vit", "test_resnet") if column == "CNN teacher" else None)
    before = deepcopy(trio.teacher.state_dict())
    trio.method.train()
    sum(trio.step().values()).backward()
    assert not any(module.training for module in trio.teacher.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in trio.teacher.state_dict().items())


def test_one_pass_of_the_student_is_all():
    """Trap 3: its first stages run once, and so do its batch norms."""
    trio = Trio(names=("test_resnet", "test_vit"))
    calls = []
    stem = next(module for module in trio.student.net.modules() if isinstance(module, torch.nn.Conv2d))
    stem.register_forward_hook(lambda *_: calls.append("stem"))
    trio.student.net.layer4[0].register_forward_hook(lambda *_: calls.append("stage 4"))
    alone = deepcopy(trio.student)
    alone(images())
    calls.clear()
    trio.step()
    assert calls == ["stem", "stage 4"]
    for name, tensor in alone.state_dict().items():
        assert torch.equal(trio.student.state_dict()[name], tensor), name


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_is_in_the_sum_until_its_weight_is_zero(pair):
    """Trap 4, and rows C to E of the ablations."""
    trio = Trio(**{f"{pair}_weight": 0.0})
    assert set(trio.step()) == {f"{one}_{kind}" for one in PAIRS if one != pair for kind in ("nce", "logits")}
    assert pair not in trio.method.contrasts


def test_rows_f_and_g_of_the_ablations_leave_one_kind_of_loss():
    assert set(Trio(nce_weight=0.0).step()) == {f"{pair}_logits" for pair in PAIRS}
    assert not list(Trio(nce_weight=0.0).method.contrasts.parameters())
    assert set(Trio(logit_weight=0.0).step()) == {f"{pair}_nce" for pair in PAIRS}


def test_without_the_fused_network_there_is_no_bridge():
    trio = Trio(teacher_fusion_weight=0.0, fusion_student_weight=0.0)
    assert trio.method.bridge is None
    assert trio.method.measured() == {}
    assert set(trio.step()) == {"teacher_student_nce", "teacher_student_logits"}


def test_weights_multiply():
    plain = Trio().step()
    weighted = Trio(teacher_fusion_weight=3.0, nce_weight=0.5, logit_weight=2.0).step()
    for name, loss in plain.items():
        pair, kind = name.rsplit("_", 1)
        factor = (3.0 if pair == "teacher_fusion" else 1.0) * (0.5 if kind == "nce" else 2.0)
        torch.testing.assert_close(weighted[name], factor * loss)


def test_the_last_stage_of_an_isotropic_network_is_two_of_twelve_blocks():
    """Trap 6."""
    size = {"image_size": 32, "embed_dim": 16, "depth": 12, "num_heads": 2, "patch_size": 8}
    teacher = build("vit_tiny_patch16_224", num_classes=NUM_CLASSES, **size)
    student, ran = network("test_convnext"), []
    for number, block in enumerate(teacher.net.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    method = FBT.build(student.spec, teacher.spec, num_classes=NUM_CLASSES, modules=Modules(student, teacher))
    batch = batch_of()
    with torch.no_grad():
        answer = teacher(images())
    ran.clear()
    method(student(images()), answer, batch)
    assert ran == [10, 11]


def test_the_hard_label_counts_once_in_the_codes_form_and_more_often_in_the_papers():
    """Trap 9: at gamma 1 the two forms differ by one cross-entropy in each pair."""
    target = torch.tensor([3, 0, 2, 2])
    code, paper = Trio(form="code"), Trio(form="paper")
    assert (code.method.includes_cross_entropy, paper.method.includes_cross_entropy) == (False, True)
    known = direct(code, target)
    inside, outside = paper.step(target), code.step(target)
    for name, (_, learner) in PAIRS.items():
        hard = losses.cross_entropy(known[learner].logits, target)
        torch.testing.assert_close(inside[f"{name}_logits"] - outside[f"{name}_logits"], hard)


@pytest.mark.parametrize(
    ("options", "included"),
    [
        ({"logit_loss": "kd"}, False),
        ({"logit_weight": 0.0}, False),
        (only("teacher_fusion", "logits"), False),
        (only("fusion_student", "logits"), True),
    ],
)
def test_the_papers_form_replaces_hard_labels_only_where_the_student_gets_it(options, included):
    assert Trio(form="paper", **options).method.includes_cross_entropy is included


@pytest.mark.parametrize("loss", ["kd", "dist"])
def test_other_logit_losses_take_the_place_of_ofas(loss):
    trio = Trio(logit_loss=loss, temperature=4.0)
    terms, known = trio.step(), direct(Trio(logit_loss=loss))
    more = {"beta": 1.0, "gamma": 1.0} if loss == "dist" else {}
    for name, (source, learner) in PAIRS.items():
        expected = getattr(losses, loss)(known[learner].logits, known[source].logits, temperature=4.0, **more)
        torch.testing.assert_close(terms[f"{name}_logits"], expected)


@every_column
def test_losses_are_computed_in_float32_under_autocast(column):
    """Trap 10."""
    trio = Trio(column)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = trio.step()
    for name, loss in terms.items():
        assert loss.dtype == torch.float32, name
        assert loss.isfinite(), name
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in trio.student.parameters())


def test_extreme_outputs_in_half_precision_stay_finite():
    """Trap 10: logits and features near the end of 16 bits, at the largest published gamma."""
    trio = Trio(gamma=1.5)
    batch, student = batch_of(), trio.student(images())
    logits = (student.logits * 0 + 6e4 * torch.eye(5)[:4]).half()
    large = Outputs(logits, student.embedding.half() * 1e3, student.stages)
    answer = trio.teacher.signals(batch)
    answer = Outputs(answer.logits.half() * 1e4, answer.embedding.half() * 1e3, answer.stages)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = trio.method(large, answer, batch)
    assert all(loss.isfinite() for loss in terms.values())
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in trio.method.parameters())


def test_mixed_labels_choose_the_likeliest_class_and_leave_positives_by_index():
    """Trap 11."""
    soft = torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0, 0, 0.4, 0.6], [0, 0, 1.0, 0, 0], [0, 0.9, 0.1, 0, 0]])
    mixed, hard = Trio().step(soft), Trio().step(soft.argmax(dim=1))
    assert all(torch.equal(mixed[name], loss) for name, loss in hard.items())


def test_an_unlabelled_image_is_taught_the_teachers_choice():
    trio = Trio()
    choice = direct(trio)["teacher"].logits.argmax(dim=1)
    labels = torch.where(TARGET < 0, choice, TARGET)
    assert all(torch.equal(loss, Trio().step(labels)[name]) for name, loss in trio.step().items())


def test_random_paths_of_the_students_second_run_are_drawn_anew():
    """Trap 17: with a CNN teacher its last stage runs twice, on shared weights."""
    trio = Trio("CNN teacher")
    drop = torch.nn.Dropout(0.5)
    seen = []
    drop.register_forward_hook(lambda module, inputs, output: seen.append(output == 0))
    trio.student.net.blocks[-1].drop_path1 = drop.train()
    trio.step()
    first, second = seen[0], seen[1]
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_gradients_of_both_runs_of_the_students_last_stage_add_up():
    """Trap 17."""
    own, other, both = (Trio("CNN teacher", nce_weight=0.0) for _ in range(3))
    own.step()["teacher_student_logits"].backward()
    other.step()["teacher_fusion_logits"].backward()
    terms = both.step()
    (terms["teacher_student_logits"] + terms["teacher_fusion_logits"]).backward()
    for trio in (own, other, both):
        trio.weight = trio.student.net.blocks[-1].mlp.fc1.weight.grad
    torch.testing.assert_close(both.weight, own.weight + other.weight)


@every_column
@pytest.mark.parametrize("target", [torch.tensor([2]), torch.tensor([1, 1, 1]), torch.tensor([-1, -1])])
def test_one_image_one_class_and_no_labels_give_finite_losses_and_gradients(column, target):
    trio = Trio(column, logit_loss="ofa", nce_symmetric=True)
    terms = trio.step(target)
    sum(terms.values()).backward()
    assert all(loss.isfinite() for loss in terms.values())
    for parameter in [*trio.student.parameters(), *trio.method.parameters()]:
        assert parameter.grad is None or parameter.grad.isfinite().all()
    if len(target) == 1:
        assert all(loss.item() == 0 for name, loss in terms.items() if name.endswith("nce"))


def test_features_of_length_zero_give_finite_losses_and_gradients():
    trio = Trio()
    batch, student, answer = batch_of(), trio.student(images()), trio.teacher.signals(batch_of())
    student = Outputs(student.logits, student.embedding * torch.tensor([[1.0], [0], [1], [0]]), student.stages)
    answer = Outputs(answer.logits, answer.embedding * 0, answer.stages)
    terms = trio.method(student, answer, batch)
    sum(terms.values()).backward()
    assert all(loss.isfinite() for loss in terms.values())
    assert all(parameter.grad.isfinite().all() for parameter in trio.student.parameters())


@every_column
def test_gradients_agree_with_finite_differences(column):
    """Of all losses with regard to the student's stage, features and logits, at once."""
    trio = Trio(column, dtype=torch.float64, gamma=1.4)
    trio.student.eval()
    batch = batch_of(torch.tensor([1, 4]))
    shown = images(2).double()
    with torch.no_grad():
        student, answer = trio.student(shown), trio.teacher.model(shown)

    def total(stage, embedding, logits):
        stages = (*student.stages[:-2], stage, student.stages[-1])
        return sum(trio.method(Outputs(logits, embedding, stages), answer, batch).values())

    inputs = [tensor.clone().requires_grad_() for tensor in (student.stages[-2], student.embedding, student.logits)]
    trio.method.detach_fusion = False  # differences of a total see what is detached move all the same
    assert torch.autograd.gradcheck(total, inputs, fast_mode=True)


@every_column
def test_micro_batches_of_logit_losses_add_up_to_the_whole_batch(column):
    """InfoNCE has fewer negatives in a micro-batch: accumulation cannot restore these (trap 12)."""
    whole = Trio(column, nce_weight=0.0).step()
    trio, parts = Trio(column, nce_weight=0.0), []
    for rows in (slice(0, 3), slice(3, 4)):
        batch = Batch({"teacher0": images()[rows]}, TARGET[rows], torch.arange(4)[rows])
        terms = trio.method(trio.student(images()[rows]), trio.teacher.signals(batch), batch)
        parts.append({name: loss * len(batch) / 4 for name, loss in terms.items()})
    for name, loss in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], loss)


def test_the_state_holds_bridges_and_neither_network():
    trio = Trio()
    assert {name.split(".")[0] for name in trio.method.state_dict()} == {"bridge", "contrasts"}
    inside = {id(module) for module in trio.method.modules()}
    assert not inside & {id(module) for net in (trio.student, trio.teacher) for module in net.modules()}
    count = sum(tensor.numel() for tensor in trio.method.state_dict().values())
    assert count == sum(parameter.numel() for parameter in trio.method.parameters())
    other = Trio()
    other.method.load_state_dict(trio.method.state_dict())


def test_a_copy_of_the_learner_holds_the_copied_student_and_the_same_teacher():
    trio = Trio()
    learner = Learner(trio.student, trio.method, settings(), several=False)
    twin = copied(learner, trio.teacher)
    assert twin.method.fusion.student is twin.student
    assert twin.student is not learner.student
    assert twin.method.fusion.teacher is trio.teacher.model
    measured = twin.method.measured()["fused"]
    assert measured.first is twin.student
    assert measured.bridge is twin.method.bridge


def copied(learner, teacher):
    return deepcopy(learner, {id(module): module for module in teacher.modules()})


@every_column
def test_the_fused_network_is_measured_on_the_images_of_its_first_part(column):
    trio = Trio(column)
    network = trio.method.measured()["fused"]
    assert network.view == {"CNN student": "student", "CNN teacher": "teacher0"}[column]
    trio.student.eval()
    torch.testing.assert_close(network.eval()(images()).logits, direct(trio)["fusion"].logits)


@pytest.mark.parametrize("feature", ["cls", "patch_mean"])
def test_the_feature_of_a_transformer_is_its_class_token_or_the_mean_of_its_patches(feature):
    trio = Trio("CNN teacher", vit_feature=feature)
    outputs = trio.student(images())
    found = trio.method._feature("student", outputs)
    expected = outputs.embedding if feature == "cls" else outputs.stages[-1][:, 1:].mean(dim=1)
    assert torch.equal(found, expected)
    assert torch.equal(trio.method._feature("teacher", outputs), outputs.embedding)  # a CNN's, whatever is asked for
    assert all(loss.isfinite() for loss in trio.step().values())


def test_both_sides_are_projected_where_a_width_is_given():
    trio = Trio(projection_dim=7)
    for contrast in trio.method.contrasts.values():
        assert contrast.learner_projector.out_features == contrast.source_projector.out_features == 7
    sum(trio.step().values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trio.method.contrasts.parameters())


def test_the_order_of_two_that_are_no_cnns_can_be_swapped():
    names = ("test_vit", "test_vit2")
    rule, swapped = Trio(names=names), Trio(names=names, order="teacher_first")
    assert rule.method.fusion.first is rule.student
    assert swapped.method.fusion.first is swapped.teacher.model
    assert all(loss.isfinite() for loss in swapped.step().values())


def test_temperatures_norms_biases_prefix_and_positions_get_no_weight_decay():
    trio = Trio()
    learner = Learner(trio.student, trio.method, settings(), several=False)
    optimizer = build_optimizer(learner, settings(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    decayed = {
        names[id(parameter)]
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group["weight_decay"] and names[id(parameter)].startswith("method.")
    }
    block = {f"method.bridge.block.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    projectors = {f"method.contrasts.{pair}.learner_projector.weight" for pair in ("teacher_student", "fusion_student")}
    assert decayed == block | projectors | {"method.bridge.patch_embedding.weight"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({name: -1.0}, f"{name}=-1.0") for name in (*PAIR_WEIGHTS, "nce_weight", "logit_weight", "fusion_ce_weight")),
        ({"nce_weight": float("inf")}, "nce_weight=inf"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"gamma": 128.0}, "gamma=128.0"),
        ({"mlp_ratio": 0.001}, "mlp_ratio=0.001"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio=inf"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"nce_temperature": 0.001}, "nce_temperature=0.001"),
        ({"nce_temperature": 2.0}, "nce_temperature=2.0"),
        ({"nce_temperature": float("nan")}, "nce_temperature=nan"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0"),
        ({"projection_dim": 0}, "projection_dim=0"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Trio(**options)


def test_heads_of_other_classes_and_teachers_without_a_network_are_refused():
    student, teacher = network("test_convnext"), network("test_vit")
    with pytest.raises(InputError, match="data with 6"):
        FBT.build(student.spec, teacher.spec, num_classes=6, modules=Modules(student, teacher))
    with pytest.raises(UnsuitablePair, match="without a live network"):
        FBT.build(student.spec, teacher.spec, num_classes=NUM_CLASSES, modules=None)


def test_equal_seeds_give_equal_bridges():
    """The trial of the fused network has a generator of its own."""
    first, second = Trio(), Trio()
    for name, tensor in first.method.state_dict().items():
        assert torch.equal(second.method.state_dict()[name], tensor), name
