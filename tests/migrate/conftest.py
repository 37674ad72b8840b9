"""Which of these tests can run here: ``test_torch_*`` need torch only, ``test_tensorflow_*`` TensorFlow only, others both."""

from importlib.util import find_spec

collect_ignore_glob = []
if find_spec("torch") is None:
    collect_ignore_glob += ["test_[!t]*.py", "test_t[!e]*.py"]
if find_spec("tensorflow") is None:
    collect_ignore_glob += ["test_[!t]*.py", "test_t[!o]*.py"]
