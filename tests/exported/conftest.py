"""What several tests of a file export is captured once, as in the tests of the export."""

from tests.export.conftest import captured_once

__all__ = ["captured_once"]
