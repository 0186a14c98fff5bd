"""Joules as they are asked for: of a bundle that is profiled, and of an app's own work."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from edgekit.energy import Counter, Energy, Meter, Snapshot, Window, reading
from edgekit.energy_window import Run, Sync, all_cores, measure_energy, nothing
from edgekit.errors import InvalidInput, MeterMissing
from edgekit.host import host_state
from edgekit.meters import EnergyRequest, choose, models, parse_meter
from edgekit.types import Value

if TYPE_CHECKING:
    from edgekit.session import Session


class EnergyFigures(Value, frozen=True, kw_only=True):
    """What a meter read and what a model says: two figures that are never one."""

    energy: Energy
    modelled_energy_j: float | None = None  # per inference
    modelled_energy_note: str | None = None  # where its watts come from, or why there is no such figure


def energy_figures(request: EnergyRequest, unit: str, run: Run) -> EnergyFigures:
    """The energy of one inference as asked for. Raises `MeterMissing` where `measured` was, and nothing measures."""
    try:
        energy = measure_energy(real_meter(request, unit), run)
    except MeterMissing as error:
        if request.mode == "measured":
            raise
        energy = Energy(provenance="unavailable", reason=str(error))
    if request.mode == "measured":
        return EnergyFigures(energy=energy)
    model = parse_meter(request.meter if request.meter and models(request.meter) else "model")
    found = model.available()
    if not found.ok:
        return EnergyFigures(energy=energy, modelled_energy_note=str(found))
    said = measure_energy(model, run, idle_s=0)
    note = f"{said.meter} [{said.provenance}] of {', '.join(said.covers)}"
    return EnergyFigures(energy=energy, modelled_energy_j=said.gross_j, modelled_energy_note=note)


def real_meter(request: EnergyRequest, unit: str) -> Meter:
    """The meter to read on this machine. Raises `MeterMissing`, on an emulated one too."""
    if host_state().emulated:
        raise MeterMissing("this board is emulated: it draws no power of its own")
    return choose(request, unit)


class EnergyWindow:
    """What `edgekit.meter` gives: a window around the body of a `with`; read `energy` after it."""

    def __init__(self, meter: Meter, session: Session | None, sync: Sync) -> None:
        self._meter, self._session, self._sync = meter, session, sync
        self._counter: Counter | None = None
        self._energy: Energy | None = None

    @property
    def energy(self) -> Energy:
        """Joules of one inference of the session, or of the whole body without one. No baseline is taken off."""
        if self._energy is None:
            raise InvalidInput("the energy of a window is known after its `with` block")
        return self._energy

    def __enter__(self) -> EnergyWindow:
        self._counter = self._meter.open()
        self._counter.mark(all_cores)
        self._calls, self._first = self._calls_now(), self._read(self._counter)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        counter = self._counter
        if counter is None:
            return
        try:
            if kind is not None:
                return
            last = self._read(counter)
            counter.mark(all_cores)
            marks = counter.settle([self._first, last])
            calls = self._calls_now() - self._calls if self._session else 1
            if calls == 0:
                self._energy = Energy(provenance="unavailable", reason="the session served no call within the window")
            else:
                window = Window(marks=marks, calls=(calls,), edge_s=counter.info.update_period_s)
                self._energy = reading(counter.info, window)
            if self._session:
                self._session.count_energy(self._energy)
        finally:
            counter.close()

    def _read(self, counter: Counter) -> Snapshot:
        self._sync()
        return counter.read()

    def _calls_now(self) -> int:
        return self._session.stats().calls if self._session else 0


def meter(
    session: Session | None = None, name: str | None = None, *, unit: str = "cpu", sync: Sync = nothing
) -> EnergyWindow:
    """Count the joules of a block: `with edgekit.meter(session) as m: ...`, then `m.energy` and `session.stats()`.

    `name` is `NAME,OPTION=VALUE` of one meter; else the most trusted that covers `unit`. `sync` waits for the device.
    Raises `MeterMissing` where nothing measures.
    """
    return EnergyWindow(choose(EnergyRequest(mode="measured", meter=name), unit), session, sync)
