"""Registered CvTs and SOFT pyramids of few blocks, as .pt2 and .onnx: files answer as the model."""

import pytest

from tests.exporting.registered import check_formats, names_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", names_of("cvt", "pyramid"))
def test_files_answer_as_the_model(name, tmp_path):
    check_formats(name, tmp_path)
