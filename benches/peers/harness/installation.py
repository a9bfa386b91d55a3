"""Installs the peers from their registries, into a directory outside the repository."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent
REPOSITORY = PEERS.parent.parent
SERVERS = PEERS / "servers"


class Unavailable(Exception):
    """Something that a peer needs is not on this machine; the text says what."""


def default_cache():
    """Where peers are installed unless the command line says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tableforge-peers"


def _needed(program, what):
    path = shutil.which(program)
    if not path:
        raise Unavailable(f"{what} needs {program}, which is not installed")
    return path


def _run(command, what, **options):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        raise Unavailable(f"{what} failed: {done.stdout.decode(errors='replace').strip()[-500:]}")


class Installation:
    """What has been installed; each part on first use."""

    def __init__(self, cache, tableforge=None, loadtest=None, features=""):
        """`features` are Cargo features of TableForge, which is built apart then."""
        self._cache = Path(cache).resolve()
        self._features = features
        given = {"tableforge": tableforge, "loadtest": loadtest}
        self._programs = {name: path.resolve() for name, path in given.items() if path}
        if self._cache.is_relative_to(REPOSITORY):
            raise SystemExit(f"--cache {cache} is inside the repository: choose a directory outside")

    @functools.cached_property
    def node(self):
        """The command that runs a Node.js server, and its environment."""
        _needed("npm", "a peer from npm")
        home = self._cache / "npm"
        home.mkdir(parents=True, exist_ok=True)
        wanted = (SERVERS / "package.json").read_text()
        installed = home / "package.json"
        if not installed.exists() or installed.read_text() != wanted or not (home / "node_modules").exists():
            # Last, so that an interrupted installation is made again.
            installed.unlink(missing_ok=True)
            fresh = home / "fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            (fresh / "package.json").write_text(wanted)
            _run(["npm", "install", "--no-audit", "--no-fund", "--omit=dev"], "npm install", cwd=fresh)
            shutil.rmtree(home / "node_modules", ignore_errors=True)
            (fresh / "node_modules").rename(home / "node_modules")
            shutil.rmtree(fresh)
            installed.write_text(wanted)
        return _needed("node", "a peer from npm"), {"NODE_PATH": str(home / "node_modules"), "NODE_ENV": "production"}

    @property
    def tokio_tungstenite(self):
        """The server on tokio-tungstenite."""
        return self.crate(PEERS / "tokio-tungstenite", "tokio-tungstenite-rooms")

    def crate(self, directory, program):
        """The program of a crate in the repository that is no part of its workspace."""
        if program not in self._programs:
            target = self._cache / "cargo"
            command = [_needed("cargo", program), "build", "--release", "--locked"]
            command += ["--manifest-path", directory / "Cargo.toml", "--target-dir", target]
            _run(command, f"cargo build of {program}")
            self._programs[program] = target / "release" / program
        return self._programs[program]

    def own(self, name):
        """A program of this repository, `tableforge` or `loadtest`: the one given, or a release build."""
        if name not in self._programs:
            target = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target")
            # The whole workspace, as ./test builds it: one package alone would be built again with fewer features.
            command = [_needed("cargo", name), "build", "--release", "--locked", "--workspace"]
            if self._features and name == "tableforge":
                target = self._cache / "features"
                command += ["--features", self._features, "--target-dir", target]
            _run(command, f"cargo build of {name}", cwd=REPOSITORY)
            built = target / "release" / name
            if self._features and name == "tableforge":
                # The next build with other features takes its place.
                built = shutil.copy2(built, self._cache / f"{name}-{self._features}")
            self._programs[name] = built
        return self._programs[name]
