from tests.distillation.conftest import echo_plugin as echo_plugin
from tests.distillation.conftest import seed_dir as seed_dir
