"""Many runs in one: members that share backbone, data and steps, and differ in α, γ, β, task or initialisation.

A config without `population` is a run of one member, itself. Otherwise member number i takes the i-th value of every
list that is given; its folder WORKDIR/members/NAME is a run's folder like any other, with the config that gives the
same run alone.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jdepth import experiment, step
from jdepth.errors import UserError
from jdepth.models.depth_model import DepthModel
from jdepth.optim import OptimizerSettings
from jdepth.step import Group, TrainState
from jdepth.tasks import Task

Config = Mapping[str, Any]
BASELINE = "baseline"


class Member(NamedTuple):
    """One run of a population.

    Attributes:
      name: such as "alpha=0.8"; "" for a run alone.
      config: of the same run alone.
    """

    name: str
    config: dict[str, Any]


def members(config: Config) -> list[Member]:
    """The runs that a config stands for. Raises UserError for lists that do not fit together."""
    lists = {key: tuple(values) for key, values in config["population"].items() if values}
    if not lists:
        return [Member("", dict(config))]
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in lists.items())
        raise UserError(f"config.population: member i takes the i-th value of each list, so give equally many: {lengths}")
    if config["backbone"]["train"] != "frozen":
        raise UserError("config.population: needs config.backbone.train=frozen; members share one pass of the backbone")
    found: list[Member] = []
    for row in zip(*lists.values(), strict=True):
        values = dict(zip(lists, row, strict=True))
        name = ",".join(f"{k}={v:.12g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        own = {**config, "population": dict.fromkeys(config["population"], ())}
        for key, value in values.items():
            own |= _changes(key, value)
        _check_kept(name, values, own)
        twin = next((member.name for member in found if {**member.config, "workdir": ""} == {**own, "workdir": ""}), None)
        if twin is not None:
            raise UserError(f"config.population: members {twin} and {name} are the same run; give each value once")
        own["workdir"] = str(Path(config["workdir"]) / "members" / name)
        found.append(Member(name, own))
    return found


def _changes(key: str, value: Any) -> dict[str, Any]:
    """What one value of a list changes in the member's config."""
    if key == "task":
        return {"alpha": 1.0, "gamma": None, "beta": None} if value == BASELINE else {"task": value}
    if key == "seed":
        if value != int(value) or value < 0:
            raise UserError(f"config.population.seed: {value!r} is not a whole number from 0")
        return {"init_seed": int(value)}
    if key == "alpha":
        return {"alpha": float(value)}
    return {key: float(value), "alpha": 1.0}


def _check_kept(name: str, values: Mapping[str, Any], own: Config) -> None:
    """Raise UserError where another list, or the config, undoes what a member is named after."""
    for key, value in values.items():
        if key in ("alpha", "gamma", "beta") and own[key] != value:
            others = ", ".join(other for other in values if other != key)
            raise UserError(f"config.population.{key}: member {name} would have {key}={own[key]}, because of {others}")
        if key == "task" and value != BASELINE and experiment.scales(own).auxiliary is None:
            raise UserError(
                f"config.population.task: member {name} would train depth only (config.alpha={own['alpha']}, "
                f"gamma={own['gamma']}, beta={own['beta']}): give an alpha below 1, or a beta"
            )


def tasks(config: Config) -> tuple[str, ...]:
    """Names of the auxiliary tasks that any member trains."""
    used = [m.config["task"] for m in members(config) if experiment.scales(m.config).auxiliary is not None]
    return tuple(dict.fromkeys(used))


class Runs:
    """The members' tasks, and where each one's parameters lie in the state that is trained.

    A member alone has the state of `step.build`; otherwise members of one structure are stacked as
    `step.build_population` takes them.
    """

    def __init__(self, config: Config, model: DepthModel, classes: Callable[[str], tuple[int, ...]]):
        """`classes`: task name -> class counts of the auxiliary data sets."""
        self._model = model
        self._settings: OptimizerSettings = experiment.optimizer_settings(config)
        self.members = members(config)
        self.alone = len(self.members) == 1 and not self.members[0].name
        self.tasks: list[list[Task]] = []
        built: dict[str, list[Task]] = {}
        self._scales = [experiment.scales(member.config) for member in self.members]
        for member, scales in zip(self.members, self._scales, strict=True):
            name = member.config["task"]
            given = () if scales.auxiliary is None else classes(name)
            key = name if given else BASELINE
            if key not in built:
                built[key] = experiment.build_tasks(member.config, model, given)
            self.tasks.append(built[key])
        self._groups, self._places = self._grouped()

    def _grouped(self) -> tuple[dict[str, Group], list[tuple[str, int]]]:
        kinds: dict[Any, list[int]] = {}
        for number, (todo, scales) in enumerate(zip(self.tasks, self._scales, strict=True)):
            kinds.setdefault((todo[-1].name, scales.depth == 0, scales.auxiliary == 0), []).append(number)
        groups, places = {}, [("", 0)] * len(self.members)
        for number, own in enumerate(kinds.values()):
            groups[str(number)] = Group(tuple(self.tasks[own[0]]), tuple(self._scales[i] for i in own))
            for index, member in enumerate(own):
                places[member] = str(number), index
        return groups, places

    def shapes(self) -> list[dict[str, Any]]:
        """`experiment.abstract_params` of each member."""
        pairs = zip(self.members, self.tasks, strict=True)
        return [experiment.abstract_params(member.config, self._model, todo) for member, todo in pairs]

    def init_state(self, params: Sequence[Any], ratio: float | None) -> TrainState:
        """State before the first step, from each member's parameters. `ratio` is None for a frozen backbone."""
        if self.alone:
            optimizers = step.build_optimizers(self.tasks[0], self._scales[0], self._settings, ratio)
            return step.init_state(params[0], self.tasks[0], optimizers, self._scales[0])
        by_group = {name: [] for name in self._groups}
        for (name, _), own in zip(self._places, params, strict=True):
            by_group[name].append(own)
        return step.init_population(by_group, self._groups, self._settings)

    def build(self, ratio: float | None, look_ahead: int, **layout: Any) -> Callable:
        """(state, frozen, batch) -> (state, one dict of metrics per member); `layout` as in `step.build`."""
        if self.alone:
            todo, scales = self.tasks[0], self._scales[0]
            optimizers = step.build_optimizers(todo, scales, self._settings, ratio)
            one = step.build(self._model, todo, optimizers, scales, self._settings, look_ahead, **layout)

            def alone(state, frozen, batch):
                state, metrics = one(state, frozen, batch)
                return state, [metrics]

            return alone
        many = step.build_population(self._model, self._groups, self._settings, look_ahead, **layout)

        def together(state, frozen, batch):
            state, metrics = many(state, frozen, batch)
            return state, [jax.tree.map(lambda x, i=index: x[i], metrics[name]) for name, index in self._places]

        return together

    def member(self, state: TrainState, number: int) -> TrainState:
        """The state of one member, as its run alone has it."""
        if self.alone:
            return state
        name, index = self._places[number]
        own = jax.tree.map(lambda x: x[index], (state.params[name], state.optimizers[name]))
        return TrainState(*own, state.step)

    def params(self, state: TrainState, number: int) -> dict[str, Any]:
        """The parameters of one member."""
        if self.alone:
            return state.params
        name, index = self._places[number]
        return jax.tree.map(lambda x: x[index], state.params[name])
