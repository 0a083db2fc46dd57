"""The programs that modules need, while some of the modules are stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from latencyprobe.domain.stages import Module
from latencyprobe_agent.kernel.hooks import Hook, functions_of_packets, functions_without
from latencyprobe_agent.kernel.runtime.attachments import Attachments, OffReason


class ModulePrograms:
    """The programs of one object. `hooks`: those of all programs that are attached one by one."""

    def __init__(
        self,
        modules: Iterable[str],
        hooks: Mapping[str, Hook],
        attached: Mapping[str, str],
        attachments: Attachments,
        *,
        typed: bool,
    ) -> None:
        """`attached`: event to the hook in use, `typed`: by BTF."""
        self._modules = frozenset(map(Module, modules))
        self._stopped: frozenset[Module] = frozenset()
        self._hooks = hooks
        self._attached = attached
        self._attachments = attachments
        self._typed = typed

    def among(self, functions: Iterable[str]) -> tuple[str, ...]:
        """Return those of these that are programs here, not variables of the kernel."""
        return tuple(function for function in functions if function in self._hooks)

    def stop(self, modules: frozenset[Module]) -> None:
        """Detach what only these modules need, and attach what else was detached for that.

        Raises EngineError.
        """
        unneeded = functions_without(self._modules, modules, self._attached, typed=self._typed)
        self._attachments.keep_off(OffReason.STOPPED, self.among(unneeded))
        self._stopped = modules

    def of_packets(self) -> tuple[str, ...]:
        """Return the programs that are attached in time slices only, if there are any."""
        modules = self._modules - self._stopped
        return self.among(functions_of_packets(modules, self._attached, typed=self._typed))
