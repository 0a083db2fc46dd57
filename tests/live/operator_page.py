"""The operator's metrics, served as the operator serves them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from latencyprobe.exposition.page import metrics_page
from latencyprobe.process.http_server import HttpServer
from latencyprobe.process.listening import ListenAddress
from latencyprobe_operator.metrics import OperatorMetrics
from tests.patience import patient

T = TypeVar("T")


@contextlib.contextmanager
def operator_page(metrics: OperatorMetrics) -> Iterator[str]:
    """Serve them, and give the address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def done(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(patient(10))

    server = HttpServer({"/metrics": metrics_page(metrics.registry)})
    try:
        yield str(done(server.start(ListenAddress("127.0.0.1", 0))))
        done(server.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
