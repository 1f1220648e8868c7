"""Python reads this at its start where the folder is on PYTHONPATH: it hides the packages that a bare GPU image lacks."""

import sys

HIDDEN = {"grain", "tensorflow_datasets", "ml_collections", "cv2"}


class Hide:
    """Refuses them, as if they were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by a test)", name=name)


sys.meta_path.insert(0, Hide())
