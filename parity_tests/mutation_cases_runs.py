"""The strategies of a run, broken on purpose.  See mutation_cases.py."""

from mutation import parity as _parity

STRATEGIES_OF_RUNS = [
    _parity("options go to the optimizer beside Muon", "nplm/train/parts.py",
            "beside = name != config.optimizer.name", "beside = name == config.optimizer.name",
            "test_training_strategies.py::"
            "test_an_optimizer_gets_torchs_options_and_a_stop_changes_nothing"),
    _parity("beta2 is dropped", "nplm/train/parts.py",
            'settings["betas"] = (beta1, beta2)', 'settings["betas"] = (beta1, 0.999)',
            "test_training_strategies.py::"
            "test_an_optimizer_gets_torchs_options_and_a_stop_changes_nothing"),
    _parity("every optimizer decays", "nplm/train/parts.py",
            "return 0.1 if config.optimizer.name in DECOUPLED else 0.0", "return 0.1",
            "test_training_strategies.py::"
            "test_an_optimizer_gets_torchs_options_and_a_stop_changes_nothing"),
    _parity("a floor is a ratio as it is", "nplm/train/parts.py",
            "floor / lr if _FLOORS[lowest] else floor", "floor",
            "test_training_strategies.py::test_a_recipe_begins_as_its_tool_does"),
    _parity("T_max is one too short", "nplm/train/parts.py",
            'settings.setdefault("T_max", end)', 'settings.setdefault("T_max", end - 1)',
            "test_training_strategies.py::"
            "test_a_schedule_of_torch_moves_the_rate_as_torchs_does_and_a_stop_changes_nothing"),
    _parity("a part lasts as long as the run", "nplm/train/parts.py",
            "        if i < len(ends):\n", "        if i < 0:\n",
            "test_training_strategies.py::"
            "test_a_schedule_of_torch_moves_the_rate_as_torchs_does_and_a_stop_changes_nothing"),
    _parity("an average begins an update late", "nplm/train/averaging.py",
            "record.step <= self.start", "record.step <= self.start + 1",
            "test_training_rules.py::test_an_average_is_torchs_over_the_weights_of_its_updates"),
    _parity("an average counts from the first update", "nplm/train/averaging.py",
            "(record.step - self.start - 1) % self.every", "(record.step - 1) % self.every",
            "test_training_rules.py::test_an_average_is_torchs_over_the_weights_of_its_updates"),
    _parity("an average is not restored", "nplm/train/averaging.py",
            "                tensor.copy_(weights[name])", "                pass",
            "test_training_rules.py::test_a_run_with_an_average_goes_on_the_same"),
    _parity("an average forgets how many updates it has", "nplm/train/averaging.py",
            "            self.model.n_averaged.copy_(np.asarray(updates))\n", "",
            "test_training_rules.py::test_a_run_with_an_average_goes_on_the_same"),
    _parity("SWALR is not restored", "nplm/train/job.py",
            '"swa_scheduler": job.swa_scheduler, "spikes"', '"spikes"',
            "test_training_rules.py::test_a_run_with_an_average_goes_on_the_same"),
    _parity("spikes are not restored", "nplm/train/job.py",
            '"swa_scheduler": job.swa_scheduler, "spikes": job.spikes,',
            '"swa_scheduler": job.swa_scheduler,',
            "test_training_rules.py::test_a_run_with_an_average_goes_on_the_same"),
    _parity("SWALR begins an update early", "nplm/train/job.py",
            "and step > average.start", "and step >= average.start",
            "test_training_rules.py::test_swalr_takes_the_rate_over_where_the_average_begins"),
    _parity("a skipped update moves the schedule", "nplm/train/job.py",
            'schedule.unit == "epoch" else record.updated', 'schedule.unit == "epoch" else True',
            "test_training_rules.py::"
            "test_a_skipped_update_leaves_everything_but_its_place_in_the_data"),
    _parity("a skipped update is a spike too", "nplm/train/job.py",
            "            if interruption.received is None:\n                continue\n",
            "            if False:\n                continue\n",
            "test_training_rules.py::"
            "test_a_skipped_update_leaves_everything_but_its_place_in_the_data"),
    _parity("window sizes change an epoch late", "nplm/train/window_schedule.py",
            "if first <= epoch)", "if first < max(epoch, 1))",
            "test_training_strategies.py::"
            "test_windows_change_with_the_epoch_and_a_stop_changes_nothing"),
    _parity("trained weights are judged, not their average", "nplm/train/job.py",
            "        judged = job.average.model.module\n", "",
            "test_training_rules.py::"
            "test_the_averaged_weights_are_judged_sampled_and_generated_from"),
    _parity("an optimizer's options may be others", "nplm/train/resume.py",
            '_require_alike(part.state_dict()["param_groups"], state["param_groups"], name)',
            "pass", "test_hostile_states.py::"
            "test_a_state_that_is_not_that_of_this_optimizer_is_refused_and_changes_nothing"),
    _parity("a state may lack entries", "nplm/train/resume.py",
            "or entry.keys() != names.keys()", "or entry.keys() > names.keys()",
            "test_hostile_states.py::"
            "test_a_state_that_is_not_that_of_this_optimizer_is_refused_and_changes_nothing"),
    _parity("a state may hold whole numbers", "nplm/train/resume.py",
            'or value.dtype.kind != "f"', 'or value.dtype.kind == "c"',
            "test_hostile_states.py::"
            "test_a_state_that_is_not_that_of_this_optimizer_is_refused_and_changes_nothing"),
    _parity("only Muon's own state is looked at", "nplm/train/resume.py",
            "            _require_moments(part, its)\n        return\n",
            "            _require_moments(part, its)\n            break\n        return\n",
            "test_hostile_states.py::"
            "test_a_state_that_is_not_that_of_this_optimizer_is_refused_and_changes_nothing"),
    _parity("a step may be 0", "nplm/train/resume.py",
            'not 1 <= float(entry["step"])', 'not 0 <= float(entry["step"])',
            "test_hostile_states.py::test_a_count_of_steps_that_cannot_be_is_refused"),
    _parity("half of a chained state stays loaded", "nplm/optim/chained.py",
            "                optimizer.state, optimizer.param_groups = state, groups\n",
            "                pass\n",
            "test_chained_optimizer.py::"
            "test_a_state_that_does_not_fit_is_refused_and_changes_nothing"),
    _parity("a chained closure is evaluated by each", "nplm/optim/chained.py",
            "(given if loss is None else loss), None", "(given if loss is None else loss), closure",
            "test_chained_optimizer.py::"
            "test_a_closure_is_evaluated_once_before_any_of_them_steps"),
    _parity("a copied chain steps the original", "nplm/optim/chained.py",
            '        return {"optimizers": self.optimizers, "defaults": self.defaults}',
            "        return dict(self.__dict__)",
            "test_chained_optimizer.py::test_a_copy_made_with_its_model_trains_by_itself"),
    _parity("a chained state is a parameter off", "nplm/optim/chained.py",
            "groups = saved[first : (first := first + len(optimizer.param_groups))]",
            "groups = saved[: len(optimizer.param_groups)]",
            "test_chained_optimizer.py::"
            "test_a_fresh_one_goes_on_from_its_state_dict_bit_for_bit"),
    _parity("a state of nobody is dropped", "nplm/optim/chained.py",
            "if key not in known]", "if False]",
            "test_chained_optimizer.py::"
            "test_a_state_that_does_not_fit_is_refused_and_changes_nothing"),
    _parity("any word is a flag", "nplm/train/options.py",
            "        raise TypeError(_KINDS[hint])", "        return value",
            "test_options.py::test_what_cannot_be_meant_is_refused_with_what_is_expected"),
    _parity("options are evaluated", "nplm/train/options.py",
            "value = ast.literal_eval(text)", "value = eval(text)",
            "test_options.py::test_nothing_is_evaluated"),
    _parity("a word has any length", "nplm/train/options.py",
            "if len(word) > LONGEST:", "if False:",
            "test_options.py::test_a_great_deal_of_text_or_of_words_is_refused_at_once"),
    _parity("an option may come twice", "nplm/train/options.py",
            "        if name in found:", "        if False:",
            "test_options.py::"
            "test_an_option_twice_and_one_that_has_a_setting_of_its_own_are_refused"),
    _parity("zooming keeps the old high end", "nplm/optim/lbfgs.py",
            "            bracket[high] = bracket[low]\n", "            pass\n",
            "test_optimizers_lbfgs.py::"
            "test_a_line_search_tries_the_steps_that_torchs_tries_and_takes_the_same"),
    _parity("zooming forgets that it was stuck", "nplm/optim/lbfgs.py",
            "        stuck = near\n", "",
            "test_optimizers_lbfgs.py::"
            "test_a_line_search_tries_the_steps_that_torchs_tries_and_takes_the_same"),
    _parity("the low end of a bracket is not found anew", "nplm/optim/lbfgs.py",
            "            low, high = (0, 1) if bracket[0].loss <= bracket[1].loss else (1, 0)\n"
            "            continue\n", "            continue\n",
            "test_optimizers_lbfgs.py::"
            "test_a_line_search_tries_the_steps_that_torchs_tries_and_takes_the_same"),
    _parity("generate ignores the average", "nplm/cli/generate.py",
            '    if weights != "trained":\n', "    if False:\n",
            "test_training_rules.py::"
            "test_an_average_that_there_is_not_cannot_be_generated_from"),
]  # fmt: skip
