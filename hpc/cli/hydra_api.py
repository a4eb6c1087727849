"""The few places of Hydra that are used, with several config trees at once; they raise Hydra's own errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import compose, version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpc.errors import ConfigError
from hpc.yamlfile import require_bounded

CONFIG_NAME = "config"


class _Folder(FileConfigSource):  # type: ignore[misc]
    """A config tree whose files may be anything: what is wrong with one is said with its name."""

    @staticmethod
    def scheme() -> str:
        """Return what a path on the search path begins with to be read by this class."""
        return "tessera"

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file, within bounds."""
        file = Path(self.path) / self._normalize_file_name(config_path)
        try:
            if file.exists():
                require_bounded(file)
            return super().load_config(config_path)
        except (HydraException, OmegaConfBaseException):
            raise
        except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            cause = " ".join(str(getattr(error, "problem", None) or getattr(error, "strerror", None) or error).split())
            msg = f"{file}: cannot be read as a configuration ({cause}); correct it, as YAML in UTF-8"
            raise ConfigError(msg) from error


@contextmanager
def on_trees(folders: Sequence[Path]) -> Iterator[Hydra]:
    """Initialise Hydra on these config trees for the block.

    ``hydra.initialize_config_dir`` takes a single folder; this does the same with a longer search path, so
    that ``glob()`` and completion see a user's own folders too.
    """
    path = create_config_search_path(search_path_dir=str(folders[0]))
    for folder in folders[1:]:
        path.prepend("tessera", f"{_Folder.scheme()}://{folder}", anchor="schema")
    SourcesRegistry.instance().register(_Folder)
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    try:
        yield Hydra.create_main_hydra2(task_name="tessera", config_search_path=path)
    finally:
        GlobalHydra.instance().clear()


def _with_text(overrides: Sequence[str]) -> list[str]:
    """Return the words with ``cluster.time=90`` as text: sbatch's 90 minutes, while a number in a file may be 1:30."""
    return [re.sub(r"^(\+{0,2}cluster\.time=)(-?\d+)$", r"\1'\2'", word) for word in overrides]


def composed(
    overrides: Sequence[str], folders: Sequence[Path], *, with_hydra: bool = False, config_name: str = CONFIG_NAME
) -> DictConfig:
    """Return the composed configuration, with Hydra's own section if asked."""
    with on_trees(folders):
        config: DictConfig = compose(config_name, _with_text(overrides), return_hydra_config=with_hydra)
    return config


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Return the words of the command line as Hydra reads them."""
    return list(OverridesParser.create().parse_overrides(_with_text(overrides)))


def sweep_members(overrides: Sequence[str], folders: Sequence[Path]) -> list[list[str]]:
    """Return the words of each member of a sweep, as Hydra's basic sweeper orders them."""
    batch: list[list[str]]
    with on_trees(folders) as hydra:
        parser = OverridesParser.create(config_loader=hydra.config_loader)
        (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(_with_text(overrides)), max_batch_size=None)
    return batch


def complete(words: Sequence[str], folders: Sequence[Path]) -> None:
    """Print what Hydra's shell completion prints for ``install=bash``, ``query=bash``, …."""
    with on_trees(folders) as hydra:
        hydra.shell_completion(CONFIG_NAME, list(words))


def only(config: DictConfig, part: str) -> DictConfig:
    """Return what ``--cfg`` asked for of a configuration with Hydra's section: ``job``, ``hydra`` or ``all``."""
    if part == "hydra":
        chosen: DictConfig = OmegaConf.masked_copy(config, "hydra")
        return chosen
    return config
