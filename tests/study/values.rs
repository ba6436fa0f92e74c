//! Times, sizes, resources and parameters of stages: what each must be, and what is said of one that is not.

use super::*;

#[test]
fn times_and_sizes() {
    wrong(
        "0:10:00",
        "10:00",
        &[
            "10:21: `time` in resources of stage setup: `10:00` could be minutes or hours: write `10:00:00` for hours and minutes, `0:10:00` for minutes and seconds",
        ],
    );
    wrong(
        "0:10:00",
        "soon",
        &[
            "10:21: `time` in resources of stage setup: `soon` is not a time: write `H:MM:SS`, `D-HH:MM:SS`, whole minutes, or units as in `1h30m`",
        ],
    );
    wrong(
        "0:10:00",
        "0",
        &["10:21: `time` in resources of stage setup: `0` is no time at all: a job needs at least a second"],
    );
    wrong(
        "{time = \"0:10:00\"}",
        "{}",
        &["10:1: resources of stage setup has no `time`: say for example `time = \"1:00:00\"`"],
    );
    wrong(
        "resources = {time = \"0:10:00\"}",
        "",
        &["6:1: stage setup has no `resources`: say at least `resources = {time = \"1:00:00\"}`"],
    );
    let minutes = load(&GOOD.replacen("\"0:10:00\"", "10", 1), Some("quick")).unwrap();
    assert_eq!(minutes.stage("setup").unwrap().resources.time_s, 600);
    wrong(
        "80G",
        "80",
        &[
            "16:51: `mem` in resources of stage train: `80` is not a size: write a number and a unit, as in `80G` or `512M`",
        ],
    );
}

#[test]
fn resources_that_no_rank_layout_fits() {
    wrong(
        "nodes = 2",
        "nodes = 0",
        &["16:22: `nodes` in resources of stage train must be an integer from 1 to 10000, not 0"],
    );
    wrong(
        "{time = \"0:10:00\"}",
        "{nodes = 2, time = \"0:10:00\"}",
        &[
            "10:1: resources of stage setup start 2 ranks, and kind `setup` runs on one: set nodes = 1 and tasks_per_node = 1",
        ],
    );
    // Four grains a batch: at most four lanes.
    wrong(
        "nodes = 2",
        "nodes = 3",
        &["16:1: resources of stage train start 6 ranks, which do not divide its 4 lanes: start 1, 2, 4 ranks"],
    );
    wrong(
        "nodes = 2",
        "gpus_per_node = 1, nodes = 2",
        &[
            "16:1: resources of stage train give 1 GPUs to 2 ranks a node: a rank has one GPU: set tasks_per_node = gpus_per_node",
        ],
    );
}

#[test]
fn parameters_have_types_bounds_and_presence() {
    wrong("{lr = 1e-3}", "{}", &["17:1: stage train has no `lr`: say `params.lr`: a parameter"]);
    wrong(
        "\nparams = {lr = 1e-3}",
        "",
        &[
            "19:13: stage train has no `lr` (profile quick): say `params.lr`: a parameter",
            "22:13: stage train has no `lr` (profile full): say `params.lr`: a parameter",
        ],
    );
    wrong("lr = 1e-3", "lr = \"1e-3\"", &["17:16: `lr` in stage train must be a number from 0 to 1, not text"]);
    wrong("lr = 1e-3", "lr = 2", &["17:16: `lr` in stage train must be a number from 0 to 1, not 2"]);
    wrong(
        "max_steps = 12",
        "max_steps = 0",
        &["20:32: `max_steps` in stage train must be an integer, at least 1, not 0 (profile quick)"],
    );
    wrong(
        "lr = 1e-3",
        "lr = 1e-3, amsgrad = 1",
        &["17:32: `amsgrad` in stage train must be true or false, not an integer"],
    );
    wrong(
        "lr = 1e-3",
        "lr = 1e-3, freeze = [1]",
        &["17:31: `freeze` in stage train must be an array of texts, and holds an integer"],
    );
    wrong(
        "lr = 1e-3",
        "lr = 1e-3, layers = [-1]",
        &["17:31: `layers` in stage train must be an array of integers that are not negative, and holds -1"],
    );
    wrong(
        "lr = 1e-3",
        "lr = 1e-3, grain_samples = 3",
        &["17:22: stage train: `grain_samples` must divide `global_batch`"],
    );
}

#[test]
fn a_bad_value_hides_nothing_else() {
    let text = GOOD
        .replace("name = \"demo\"", "name = \"a\\nb\"\nname = \"c\"")
        .replace("lr = 1e-3", "lr = nan, lrr = 1")
        .replace("max_steps = 12", "max_steps = 99999999999999999999");
    assert_eq!(
        problems(&text, Some("quick")),
        [
            "3:8: a value holds a newline or another control character: remove it",
            "4:1: this key is given twice: remove one",
            "18:16: this is not a finite number: write a finite one, or leave the key out",
            "18:21: unknown key `lrr` in stage train: did you mean `lr`?",
            "21:32: this integer is beyond 63 bits: write a smaller one",
        ]
    );
}
