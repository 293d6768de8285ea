"""The HTTPS listener of one server: opened when everything behind it runs, closed before it stops.

TLS 1.2 and 1.3, HTTP/1.1. Where HTTPS has its usual port, port 80 answers with a
redirect and nothing else.
"""

import asyncio
import errno
import logging
import ssl
from pathlib import Path

from aiohttp import web
from aiohttp.http import HttpProcessingError

from kmgr.errors import ConfigError

logger = logging.getLogger(__name__)

HTTPS_PORT = 443
HTTP_PORT = 80
# Open pages are told to go at once (`live`, `display`); what is still busy then is cut off. Bodies that nobody
# wanted were dropped before (`uploads`).
_LINGER_S = 1.0
_KEEP_ALIVE_S = 75.0
_READ_AHEAD = 1 << 18
_PERMISSION = {errno.EACCES, errno.EPERM}


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Tell whether a line of aiohttp's is news: whoever sends what is no HTTP was answered, that is all."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_http_logger = logging.getLogger(f"{__name__}.http")
_http_logger.addFilter(_worth_a_line)


class WebServer:
    """Serves one application over HTTPS from `start()` to `stop()`."""

    def __init__(self, app: web.Application, *, host: str, port: int, cert: Path, key: Path) -> None:
        self._app = app
        self._host = host
        self._wanted_port = port
        self._cert = cert
        self._key = key
        self._tls: ssl.SSLContext | None = None
        self._runners: list[web.AppRunner] = []
        self._port = 0

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        return self._port

    async def start(self) -> None:
        """Listen; raise `ConfigError` saying what to do if that is not possible."""
        tls = self._tls = await asyncio.to_thread(tls_context, self._cert, self._key)
        runner = self._runner(self._app)
        self._runners.append(runner)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._wanted_port, ssl_context=tls, reuse_address=True).start()
        except OSError as error:
            await self.stop()
            raise _cannot_listen(self._host, self._wanted_port, error) from error
        self._port = int(runner.addresses[0][1])
        if self._wanted_port == HTTPS_PORT:
            await self._redirect_from_http()

    def reload(self) -> None:
        """Show the certificate that lies in its file now to whoever connects from here on."""
        if self._tls is not None:
            self._tls.load_cert_chain(self._cert, self._key)

    async def stop(self) -> None:
        """Stop listening and end what is open, within two seconds; safe to call twice."""
        runners, self._runners = self._runners, []
        for runner in reversed(runners):
            await runner.cleanup()

    def _runner(self, app: web.Application) -> web.AppRunner:
        return web.AppRunner(
            app,
            access_log=None,
            logger=_http_logger,
            shutdown_timeout=_LINGER_S,
            keepalive_timeout=_KEEP_ALIVE_S,
            lingering_time=_LINGER_S,
            read_bufsize=_READ_AHEAD,
        )

    async def _redirect_from_http(self) -> None:
        runner = self._runner(redirecting_app())
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, HTTP_PORT, reuse_address=True).start()
        except OSError as error:
            await runner.cleanup()
            logger.info("port 80 does not redirect to HTTPS: it is not to be had", extra={"cause": str(error)})
        else:
            self._runners.append(runner)


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return how HTTPS is spoken, with the certificate of these files."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the HTTPS certificate {cert} and its key {key} cannot be used: {error}. Put matching PEM files there, "
            "or remove both and kmgr makes new ones"
        ) from error
    return context


def redirecting_app() -> web.Application:
    """Return an application that sends every request to the same address by HTTPS."""

    async def redirect(request: web.Request) -> web.StreamResponse:
        host = request.host
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return web.Response(status=308, headers={"Location": f"https://{name}{request.rel_url}"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", redirect)
    return app


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} for HTTPS is taken by another program: see which with `ss -ltnp 'sport = :{port}'` and "
            "stop it, or set another web_port in kmgr.toml"
        )
    if error.errno in _PERMISSION:
        return ConfigError(
            f"port {port} for HTTPS needs a right that kmgr was not started with: run it as the systemd service, or "
            "set web_port to 1024 or higher in kmgr.toml"
        )
    told = error.strerror or error
    return ConfigError(f"HTTPS cannot listen on {host}:{port}: {told}. Mend web_host in kmgr.toml")
