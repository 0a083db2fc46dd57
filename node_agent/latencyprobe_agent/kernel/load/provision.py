"""Programs that run, from a cached object or from one that is compiled now.

A cached object is used if it is attached as it was at first. If the kernel answers otherwise, the
object is dropped and compiled again, once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from latencyprobe_agent.kernel.libbpf import KernelRefusedError
from latencyprobe_agent.kernel.load.cache import (
    CachedObject,
    CachedRequest,
    CacheFolder,
    ObjectCache,
)
from latencyprobe_agent.kernel.load.handover import Handover
from latencyprobe_agent.kernel.load.key import object_key
from latencyprobe_agent.kernel.load.loader import is_shortage
from latencyprobe_agent.kernel.load.loading import (
    LoadedPrograms,
    LoadingPrograms,
    close_in_thread,
    in_thread,
    lacks_alternatives,
    load,
    load_spare,
)
from latencyprobe_agent.kernel.load.object_file import CorruptObjectError, decode
from latencyprobe_agent.kernel.request import Request

log = logging.getLogger(__name__)

Compile = Callable[[Request], Awaitable[Handover]]


class Origin(StrEnum):
    """The origin of an object, as the log has it."""

    CACHE = "cached"
    COMPILER = "compiled"


@dataclass(frozen=True, slots=True)
class Provided:
    """Programs that are attached, with the encoded object that they were loaded from.

    `diagnostics`: the messages of compiler and kernel.
    """

    programs: LoadedPrograms
    drop_reasons: tuple[str, ...]
    content: bytes
    origin: Origin
    diagnostics: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A cached object whose programs are being loaded. The owner provides from it, or closes it."""

    key: str
    cached: CachedObject
    drop_reasons: tuple[str, ...]
    programs: LoadingPrograms

    def close(self) -> None:
        """Free the programs, once they are loaded."""
        self.programs.close()


def prepare(like: Request, cache: ObjectCache) -> Prepared:
    """Begin to load the object that was used last. Objects that trace count if `like` traces.

    A client's trace ends with its connection. The agent's own one goes on after a restart, unless
    no stage of packets is measured, or the kernel refuses it. `like`: a request whose modules and
    UDP do not matter. Raises LookupError if there is no such object, CorruptObjectError, and
    KernelRefusedError.
    """
    with cache.opened() as folder:
        for key, cached in folder.newest() if folder is not None else ():
            wanted = cached.request
            if wanted is None or (wanted.trace and not like.trace):
                continue
            request = replace(like, modules=wanted.modules, udp=wanted.udp, trace=wanted.trace)
            if object_key(request) == key:
                compiled = decode(cached.content)
                programs = LoadingPrograms(compiled, request)
                return Prepared(key, cached, compiled.drop_reasons, programs)
    raise LookupError("the cache has no object of this kernel and these sources")


async def provide(
    request: Request,
    compile_: Compile,
    cache: ObjectCache | None,
    prepared: Prepared | None = None,
) -> Provided:
    """Return programs that are attached. Raises EngineError and OSError, as `compile_` does.

    `prepared`: used if it is for this request, else closed.
    """
    key = object_key(request) if cache is not None else ""
    if prepared is not None and prepared.key == key:
        if (provided := await _attached(prepared)) is not None:
            return provided
    elif prepared is not None:
        close_in_thread(prepared)
    if cache is None:
        return await _compiled(request, compile_)
    with cache.opened() as folder:
        if folder is None:
            return await _compiled(request, compile_)
        if (provided := await _cached(request, folder, key)) is not None:
            return provided
        provided = await _compiled(request, compile_)
        wanted = CachedRequest(request.modules, request.udp, request.trace)
        folder.write(key, CachedObject(provided.content, provided.programs.attached, wanted))
        return provided


def provide_spare(request: Request, provided: Provided) -> Provided:
    """Load the same programs once more, and do not attach them. Raises KernelRefusedError."""
    spare = load_spare(decode(provided.content), request, provided.programs)
    return replace(provided, programs=spare)


async def _attached(prepared: Prepared) -> Provided | None:
    """Attach prepared programs; return None if that is not as it was at first."""
    try:
        programs = await in_thread(prepared.programs.attach)
    except (LookupError, KernelRefusedError) as error:
        if is_shortage(error):
            raise
        return None
    if programs.attached != prepared.cached.attached:
        programs.close()
        return None
    said = "\n".join(programs.messages)
    return Provided(programs, prepared.drop_reasons, prepared.cached.content, Origin.CACHE, said)


async def _cached(request: Request, folder: CacheFolder, key: str) -> Provided | None:
    cached = folder.read(key)
    if cached is None:
        return None
    try:
        provided = await _loaded(request, cached.content, Origin.CACHE)
    except (CorruptObjectError, LookupError, KernelRefusedError) as error:
        if is_shortage(error):
            raise
        log.warning("cannot load a cached object: %s; compiling it again", error)
        folder.drop(key)
        return None
    if provided.programs.attached == cached.attached:
        return provided
    provided.programs.close()
    changed = sorted(cached.attached.items() ^ provided.programs.attached.items())
    log.warning("the kernel attaches a cached object otherwise; compiling it again: %s", changed)
    folder.drop(key)
    return None


async def _compiled(request: Request, compile_: Compile) -> Provided:
    """Compile the first choices; if the kernel refuses one, compile the alternatives too."""
    built = await compile_(request)
    provided = await _loaded(request, built.content, Origin.COMPILER, built.diagnostics)
    refused = provided.programs.refused
    if not lacks_alternatives(decode(built.content), request, refused):
        return provided
    provided.programs.close()
    built = await compile_(replace(request, complete=True))
    return await _loaded(request, built.content, Origin.COMPILER, built.diagnostics)


async def _loaded(
    request: Request, content: bytes, origin: Origin, diagnostics: str = ""
) -> Provided:
    compiled = decode(content)
    programs = await in_thread(lambda: load(compiled, request))
    said = "\n".join(filter(None, (diagnostics, *programs.messages)))
    return Provided(programs, compiled.drop_reasons, content, origin, said)
