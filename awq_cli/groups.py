"""The options as the command shows them and calls them."""

import click

from awq_cli import options

# In the order of `--help`, under its headings.
_NAMES = {
    "Model": "task model_name trust_remote_code",
    "Quantizing": "w_bit bits_per_weight group_size symmetric awq scales solver distill lm_head lm_head_group_size "
    "embedding_bits calib_data n_samples seqlen seed bos resume dry_run tensor_parallel",
    "Running": "checkpoint precision kv_bits head_bits target device latency flash_attention num_torch_threads prompt "
    "chat system context max_new_tokens stop temperature top_k top_p min_p draft",
    "Serving": "host port api_key allow_origin slots",
    "Evaluating": "dataset window n_windows tasks shots eval_data limit float_model",
    "Output": "output format_ push overwrite json_file csv_file quiet version",
}
GROUPS = {heading: tuple(getattr(options, name) for name in names.split()) for heading, names in _NAMES.items()}


class GroupedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        left = {parameter.name: parameter.get_help_record(context) for parameter in self.get_params(context)}
        for heading, decorators in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([left.pop(_parameter(decorator).name) for decorator in decorators])
        with formatter.section("Help"):
            formatter.write_dl(list(left.values()))


def _parameter(decorator) -> click.Parameter:
    """What a decorator adds to a command."""

    def bare() -> None: ...

    (parameter,) = decorator(bare).__click_params__
    return parameter


# Parameter -> its option, for those whose names differ only in spelling.
NAMES = {
    parameter.name: parameter.opts[0] for decorators in GROUPS.values() for parameter in map(_parameter, decorators)
}
# Of those that are pairs, the one that says no.
NEGATIONS = {
    parameter.name: parameter.secondary_opts[0]
    for decorators in GROUPS.values()
    for parameter in map(_parameter, decorators)
    if parameter.secondary_opts
}


def spelled(parameter: click.Parameter, value: object) -> str:
    """The option that gave a parameter its value."""
    return NEGATIONS.get(parameter.name, parameter.opts[0]) if value is False else parameter.opts[0]


def every_option(command):
    """Decorate a function with all options, in the order of `--help`."""
    for option in reversed([option for decorators in GROUPS.values() for option in decorators]):
        command = option(command)
    return command
