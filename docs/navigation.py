"""A hook of mkdocs: the navigation of mkdocs.yml names pages by topic, and those that are not written are left out."""

from pathlib import Path
from typing import Any


def there(entry: Any, folder: Path) -> Any:
    """An entry of the navigation without pages that do not exist; None where nothing is left."""
    if isinstance(entry, str):
        return entry if (folder / entry).is_file() else None
    ((title, below),) = entry.items()
    if isinstance(below, str):
        return entry if (folder / below).is_file() else None
    kept = [found for each in below if (found := there(each, folder)) is not None]
    return {title: kept} if kept else None


def on_config(config: Any) -> Any:
    """Called by mkdocs once its configuration is read."""
    folder = Path(config["docs_dir"])
    config["nav"] = [found for entry in config["nav"] if (found := there(entry, folder)) is not None]
    return config
