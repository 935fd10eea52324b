"""A shell as on an arm64 machine: whatever is started by its own loader is emulated. With a root, a machine with nothing on it: a folder that
holds a shell without libraries, and the kernel's own file systems."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from verifier.runner.native import LOADER

BUSYBOX = Path("/bin/busybox")
_APPLETS = "sh cat chmod df echo env find mkdir mv rm sha256sum tar timeout touch wc"


def write_shell(path: Path, emulator: str, cpu: str, root: Path | None = None) -> Path:
    """A script that runs the command of SSH_ORIGINAL_COMMAND, or of its argument."""
    loader = LOADER.replace(".", r"\.")
    changes = f"s#([^ ]+/{loader}) --library-path#{emulator} -cpu {cpu} \\1 --library-path#; s#uname -m#echo aarch64#"
    lines = ["#!/bin/sh", f"command=$(printf %s \"${{SSH_ORIGINAL_COMMAND:-$1}}\" | sed -E '{changes}')"]
    if root is None:
        lines.append('exec sh -c "$command"')
    else:
        mounts = " && ".join(f"mount --rbind /{name} {root}/{name}" for name in ("proc", "sys", "dev"))
        inside = f"exec chroot {root} /bin/busybox env -i HOME=/home PATH=/bin sh -c"
        lines.append(f'exec unshare -m sh -c \'{mounts} && {inside} "$1"\' - "$command"')  # no mount is left behind
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def make_empty_root(root: Path, emulator: Path) -> bool:
    """Lay out a root. Whether this machine can be entered through it: by root, with Debian's busybox-static and an emulator without libraries."""
    if not BUSYBOX.is_file():
        return False
    for name in ("bin", "home", "tmp", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    shutil.copy(emulator, root / "emulator")
    for applet in _APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    shell = write_shell(root.with_name("tried.sh"), "/emulator", "max", root)
    tried = subprocess.run(
        [shell, "/emulator --version > /dev/null && echo here"], capture_output=True, text=True, check=False
    )
    return tried.stdout == "here\n"
