"""Power that somebody publishes on an MQTT topic: a plug, a home's meter, a logger. Needs the extra ``mqtt``.

Each message is one reading, taken when it arrives. A retained message is old, so it does not count.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import Any

from edgepipe.agent.meters import Meter, NoMeterError
from edgepipe.errors import UsageError
from edgepipe.meters import SECRETS, Settings, pick

OPTIONS = {
    "topic": "the topic, e.g. tele/plug/SENSOR",
    "field": "where the figure is in a JSON message, e.g. ENERGY.Power; a bare number if left out",
    "scale": "what a unit of the figure is in W, e.g. 0.001 for mW",
    "wait_seconds": "how long to wait for the first message; 15 if left out",
    "tls": "true where the broker wants it",
    "user": "for the broker",
    **SECRETS,
}
# How often new messages are looked for; their own rate is what the record says.
_RATE_HZ = 20.0
_PORT, _TLS_PORT = 1883, 8883


def find(settings: Settings) -> Meter:
    """The topic at the broker ``address``, ``host[:port]``.

    Raises:
        NoMeterError: nothing is published there, or paho-mqtt is not installed. UsageError: no topic is named.
        OSError: the broker can't be reached, or refuses. ValueError: a message holds no number.
    """
    address, topic = settings.place("broker.local"), settings.text("topic")
    if not topic:
        raise UsageError("the MQTT meter has no topic", "[meter.options] of the target", 'write topic = "..."')
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError:
        raise NoMeterError("paho-mqtt is not installed", fix="pip install 'edgepipe[mqtt]'") from None
    inbox = _Inbox(topic, settings)
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect, client.on_message = inbox.connected, inbox.received
    if settings.password():
        client.username_pw_set(settings.text("user"), settings.password())
    secure = settings.options.get("tls") is True
    if secure:
        client.tls_set()
    host, _, port = address.partition(":")
    client.connect(host, int(port) if port.isdigit() else _TLS_PORT if secure else _PORT, keepalive=30)
    client.loop_start()

    def close() -> None:
        client.disconnect()
        client.loop_stop()

    wait = settings.number("wait_seconds", 15.0)
    try:
        if not inbox.first.wait(wait):
            raise NoMeterError(f"nothing was published on {topic} in {wait:g} s", present=True)
        inbox.check()
    except BaseException:
        close()
        raise
    return Meter("mqtt", topic, "wall", inbox.next, _RATE_HZ, close=close)


class _Inbox:
    """Messages in the order they came, turned into W when they are read."""

    def __init__(self, topic: str, settings: Settings) -> None:
        self._topic, self._field = topic, settings.text("field")
        self._scale = settings.number("scale", 1.0)
        self._messages: deque[bytes] = deque(maxlen=1000)
        self._refused = ""
        self.first = threading.Event()

    def connected(self, client: Any, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        """Subscribe; after a lost connection again."""
        if reason.is_failure:
            self._refused = str(reason)
            self.first.set()
        else:
            client.subscribe(self._topic)

    def received(self, _client: Any, _user: Any, message: Any) -> None:
        """Keep a message that is new."""
        if not message.retain:
            self._messages.append(bytes(message.payload[:65536]))
            self.first.set()

    def check(self) -> None:
        """Read the first message, or say why there is none.

        Raises:
            PermissionError: the broker refused. ValueError: it holds no number.
        """
        if self._refused:
            raise PermissionError(f"the broker says: {self._refused}")
        self._watts(self._messages[0])

    def next(self) -> float | None:
        """Return the oldest reading that was not asked for yet, or None."""
        return self._watts(self._messages.popleft()) if self._messages else None

    def _watts(self, payload: bytes) -> float:
        try:
            document = json.loads(payload)
        except (ValueError, RecursionError):
            raise ValueError(f"a message on {self._topic} is not JSON and no number") from None
        return pick(document, self._field) * self._scale
