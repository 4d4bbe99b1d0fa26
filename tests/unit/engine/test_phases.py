"""A profile of a step shows its phases by name and in order."""

from torch.profiler import profile

from crossdistill.engine.loop import Trainer
from crossdistill.engine.phases import PHASES, PREFIX
from crossdistill.engine.progress import Quiet
from crossdistill.teachers import FrozenTeacher
from samples.training import Match, SmallNet, TensorLoader, settings


def test_every_step_goes_through_every_phase_in_order():
    run = settings(steps=3)
    trainer = Trainer(SmallNet(), Match(), FrozenTeacher(SmallNet(seed=2)), TensorLoader(), None, run, 0, "cpu", None)
    trainer.resume(None, {})
    with profile() as profiled:
        trainer.run(Quiet())
    found = sorted((event.time_range.start, event.name) for event in profiled.events() if event.name.startswith(PREFIX))
    assert [name for _, name in found] == [PREFIX + name for name in PHASES] * 3


def test_each_micro_batch_has_its_own_but_for_images_and_optimizer():
    run = settings(steps=1)
    loader = TensorLoader(micro_batch=8)
    trainer = Trainer(SmallNet(), Match(), FrozenTeacher(SmallNet(seed=2)), loader, None, run, 0, "cpu", None)
    trainer.resume(None, {})
    with profile() as profiled:
        trainer.run(Quiet())
    counts = {name: sum(event.name == PREFIX + name for event in profiled.events()) for name in PHASES}
    assert counts == {"data": 1, "teacher": 2, "student": 2, "method": 2, "backward": 2, "optimizer": 1}
