"""Sign orders to boards with the user's SSH key, by OpenSSH's ssh-keygen: it finds keys in an ssh-agent or FIDO2 token.

edgepipe sees neither a private key nor a passphrase. See docs/adr/0010 and SECURITY.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from edgepipe import paths
from edgepipe.agent.orders import SIGNING_NAMESPACE, Signed, Statement
from edgepipe.codec import canonical
from edgepipe.errors import DeadlineError, UsageError
from edgepipe.progress import Progress
from edgepipe.schema import NAME

KEY_VARIABLE = "EDGEPIPE_SIGNING_KEY"
# A token waits for a touch, a key for its passphrase: a person needs time for that.
_SECONDS = 120.0
_MOST_LINE = 16 << 10


def key_of(target: str) -> Path | None:
    """The key to sign with for a target: ``$EDGEPIPE_SIGNING_KEY``, else the one kept by `remember`, else None."""
    if named := os.environ.get(KEY_VARIABLE):
        return Path(named).expanduser()
    try:
        return Path(_note(target).read_text("utf-8").strip())
    except OSError:
        return None


def remember(target: str, key: Path) -> None:
    """Sign with this key file from now on for a target; the file's name is kept, never its content."""
    public_line(key)
    note = _note(target)
    note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    note.write_text(f"{key.expanduser().absolute()}\n", "utf-8")


def public_line(key: Path) -> str:
    """The public half, as ``type base64 comment``, of a private key file (its .pub beside it) or a public one.

    Raises:
        UsageError: there is none.
    """
    path = key.expanduser()
    public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
    try:
        with public.open("rb") as file:
            words = file.read(_MOST_LINE).decode("utf-8").split()
    except (OSError, UnicodeDecodeError):
        words = []
    if len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-", "sk-")):  # noqa: PLR2004  type, key
        raise UsageError(
            "no public key there",
            str(public),
            "name an SSH key whose .pub lies beside it; ssh-keygen -t ed25519 makes one",
        )
    return " ".join(words)


def allowed_line(key: Path, who: str) -> str:
    """A line of an allowed-signers file: this key, for edgepipe's signatures alone, as ``who``."""
    kind, blob = public_line(key).split()[:2]
    return f'{who} namespaces="{SIGNING_NAMESPACE}" {kind} {blob}\n'


class Signer:
    """Signs orders to one target. An order that was signed already is not signed again: a token asks for a touch."""

    def __init__(self, target: str, progress: Progress) -> None:
        self._target, self._progress = target, progress
        self._counter = 0
        self._done: dict[tuple[str, str], Signed] = {}

    def order(self, verb: str, subject: str, counter: int) -> Signed:
        """The signed order to do ``verb`` with ``subject`` on a board whose counter stands at ``counter``.

        Raises:
            UsageError: no key is named, or ssh-keygen can't sign with it. DeadlineError: nobody touched the token.
        """
        known = self._done.get((verb, subject))
        if known and known.statement.counter >= counter:
            return known
        key = key_of(self._target)
        if key is None:
            raise UsageError(
                f"{self._target} takes signed orders only, and no key is named to sign with",
                f"target {self._target}",
                f"edgepipe targets signers {self._target} --key ~/.ssh/id_ed25519, or set {KEY_VARIABLE}",
            )
        self._counter = max(self._counter, counter) + 1
        statement = Statement(verb, subject, self._target, self._counter)
        if public_line(key).startswith("sk-"):
            self._progress.note(f"sign {verb} for {self._target}: touch the token")
        signed = Signed(statement, sign(canonical(statement), key))
        self._done[verb, subject] = signed
        return signed


def sign(data: bytes, key: Path) -> str:
    """The SSHSIG signature of ``data``, armoured.

    Raises:
        UsageError: there is no ssh-keygen, or it can't sign with this key. DeadlineError: it waits for too long.
    """
    program = shutil.which("ssh-keygen")
    if not program:
        raise UsageError("there is no ssh-keygen to sign with", "this machine", "install OpenSSH's client")
    command = [program, "-Y", "sign", "-f", str(key.expanduser()), "-n", SIGNING_NAMESPACE]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineError(
            "nothing was signed in time", str(key), "unlock the key: ssh-add; or touch the token"
        ) from None
    if done.returncode or b"BEGIN SSH SIGNATURE" not in done.stdout:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[-200:]
        fix = f"put the key back, or unlock it: ssh-add {key}; or sign with another: {KEY_VARIABLE}=FILE"
        raise UsageError(f"ssh-keygen can't sign: {said}", str(key), fix)
    return done.stdout.decode("ascii")


def _note(target: str) -> Path:
    if not NAME.match(target) or target.startswith("."):
        raise UsageError(f"not a target name: {target[:64]!r}", "targets", "use letters, digits, dot, dash, underscore")
    return paths.data_home() / "signers" / target
