from tests.distillation.conftest import echo_plugin as echo_plugin
