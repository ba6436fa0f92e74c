//! `experiment_summary.txt` and `multi_seed_summary.txt`: the results as a page of plain text.
//!
//! Every number comes from the JSON beside it, rounded by the one rounding of tables.

use serde_json::Value;

use super::Params;
use super::findings::{at, number, short};
use crate::record::CellKey;
use crate::report::render::visible;
use crate::report::table::number::{fixed, with_suffix};

const RULE: &str = "==============================================================================";

/// Lines of a block under its heading.
struct Page(String);

impl Page {
    fn new(title: &str) -> Self {
        Self(format!("{RULE}\n{}\n{RULE}\n", visible(title)))
    }

    fn block(&mut self, title: &str) {
        self.0.push_str(&format!("\n{title}\n{}\n", "-".repeat(title.len())));
    }

    fn line(&mut self, text: &str) {
        self.0.push_str(text.trim_end());
        self.0.push('\n');
    }

    /// A row of a table: a label of 30 columns, the rest 15 each, on the right.
    fn row(&mut self, label: &str, cells: &[String]) {
        let cells: String = cells.iter().map(|c| format!(" {c:>15}")).collect();
        self.line(&format!("{:<30}{cells}", visible(label)));
    }
}

fn show(x: Option<f64>, digits: u8) -> String {
    x.map_or_else(|| "n/a".to_owned(), |x| fixed(x, digits))
}

fn percent(x: Option<f64>) -> String {
    x.map_or_else(|| "n/a".to_owned(), |x| format!("{} %", fixed(x, 1)))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(s) => visible(s),
        other => visible(&other.to_string()),
    }
}

/// The page of one seed, from its final results.
pub(super) fn of_seed(found: &Value, params: &Params) -> String {
    let info = at(found, &["experiment_info"]);
    let mut page = Page::new(&format!(
        "{} / {}: results of seed {}",
        text(at(info, &["study"])),
        text(at(info, &["profile"])),
        text(at(info, &["seed"]))
    ));
    if !at(info, &["arm"]).is_null() {
        page.line(&format!("arm    {}", text(at(info, &["arm"]))));
    }
    page.line(&format!("model  {}", text(at(info, &["model_name"]))));
    page.line(&format!("seed   {}", text(at(info, &["seed"]))));

    page.block("Training");
    page.row("", &["best val. ppl".into(), "last train loss".into(), "tokens".into()]);
    for model in params.models.keys() {
        let of = at(found, &["training_summary", &short(model, params)]);
        let tokens = number(of, &["train_tokens"]).map_or_else(|| "n/a".to_owned(), |x| with_suffix(x, 1));
        let losses =
            [show(number(of, &["best_val_perplexity"]), 3), show(number(of, &["final_train_loss"]), 4), tokens];
        page.row(model, &losses);
    }

    page.block("Perplexity on the test split");
    page.row("", &["perplexity".into(), "loss, nats".into(), "tokens".into()]);
    for model in params.models.keys() {
        let of = at(found, &["evaluation_summary", "pile_test", model]);
        let tokens = number(of, &["total_tokens"]).map_or_else(|| "n/a".to_owned(), |x| fixed(x, 0));
        page.row(model, &[show(number(of, &["perplexity"]), 3), show(number(of, &["loss"]), 4), tokens]);
    }
    let unigram = number(found, &["evaluation_summary", "unigram_perplexity"]);
    page.row("(unigram model)", &[show(unigram, 3)]);
    page.line(&format!("gap: {}", percent(number(found, &["key_findings", "perplexity_gap_percent"]))));

    attack(&mut page, "HotFlip", at(found, &["attack_summary", "hotflip"]), params);
    attack(&mut page, "Universal trigger (UAT)", at(found, &["attack_summary", "uat"]), params);

    page.block("Key findings");
    let findings = at(found, &["key_findings"]);
    page.line(&format!("perplexity gap           {}", percent(number(findings, &["perplexity_gap_percent"]))));
    page.line(&format!("reduction of HotFlip     {}", percent(number(findings, &["hotflip_reduction_percent"]))));
    page.line(&format!("most robust to HotFlip   {}", text(at(findings, &["most_robust_hotflip"]))));
    if let Some(reasons) = at(findings, &["reasons"]).as_object() {
        for (key, why) in reasons {
            page.line(&format!("no {key}: {}", text(why)));
        }
    }
    criteria(&mut page, found);
    if let Some(warnings) = at(found, &["warnings"]).as_array().filter(|w| !w.is_empty()) {
        page.block("Warnings");
        for warning in warnings {
            page.line(&format!("- {}", text(warning)));
        }
    }
    paper(&mut page, found, params);
    page.0
}

/// One attack: losses, then success under every metric and scope.
fn attack(page: &mut Page, title: &str, attack: &Value, params: &Params) {
    page.block(title);
    if attack.is_null() {
        return page.line("not run");
    }
    let config = at(attack, &["attack_config"]);
    page.line(&format!(
        "headline: metric {}, losses over {}",
        text(at(config, &["success_metric"])),
        text(at(config, &["loss_scope"]))
    ));
    let models: Vec<&String> = params.models.keys().collect();
    page.row("", &models.iter().map(|m| short(m, params)).collect::<Vec<_>>());
    let mut rates = |label: &str, path: &[&str]| {
        let cells: Vec<String> =
            models.iter().map(|m| percent(number(at(attack, &["results", m]), path).map(|x| 100.0 * x))).collect();
        page.row(label, &cells);
    };
    rates("success rate", &["success_rate"]);
    rates("random control", &["random_control", "success_rate"]);
    for scope in ["all", "untouched_targets"] {
        for metric in ["nll_rel", "ppl_rel", "delta_nats"] {
            rates(&format!("  {metric}, {scope}"), &["scopes", scope, "success_rates", metric]);
        }
    }
    for (scope, label) in [("all", "rise, nats, all"), ("untouched_targets", "rise, nats, untouched")] {
        let cells: Vec<String> = models
            .iter()
            .map(|m| show(number(at(attack, &["results", m, "scopes", scope]), &["delta_nats"]), 4))
            .collect();
        page.row(label, &cells);
    }
    for model in models {
        if let Some(trigger) = at(attack, &["results", model, "trigger_text"]).as_str() {
            page.line(&format!("trigger of {model}: {:?}", visible(trigger)));
        }
    }
}

fn criteria(page: &mut Page, found: &Value) {
    page.block("Outcome criteria");
    for criterion in at(found, &["criteria"]).as_array().into_iter().flatten() {
        let met = at(criterion, &["seeds_met"]).as_u64();
        let met = met
            .map(|n| format!(" ({n} of {} seeds on their own)", text(at(found, &["num_seeds"]))))
            .unwrap_or_default();
        page.line(&format!(
            "{:<8} {} {} {}: {}{met}",
            text(at(criterion, &["status"])),
            text(at(criterion, &["name"])),
            text(at(criterion, &["relation"])),
            text(at(criterion, &["limit"])),
            show(number(criterion, &["value"]), 2),
        ));
    }
}

/// What goes into the paper, and where each number stands in the results.
fn paper(page: &mut Page, found: &Value, params: &Params) {
    page.block("For the paper");
    for model in params.models.keys() {
        let perplexity = number(found, &["evaluation_summary", "pile_test", model, "perplexity"]);
        let rate = number(found, &["attack_summary", "hotflip", "results", model, "success_rate"]);
        page.line(&format!(
            "{}: perplexity {}, HotFlip success {}",
            visible(model),
            show(perplexity, 2),
            percent(rate.map(|x| 100.0 * x))
        ));
        page.line(&format!("  evaluation_results.json  .pile_test.{model}.perplexity"));
        page.line(&format!("  hotflip_results.json     .results.{model}.success_rate"));
    }
    page.line("Tables over seeds are in tables/. One seed has no standard deviation.");
}

/// The page of a study that has tables and documents only.
pub(super) fn of_cells(key: &CellKey, cells: usize, missing: usize) -> String {
    let mut page = Page::new(&format!("{} / {}", key.study, key.profile));
    page.line(&format!("{} of {cells} cells are in the tables and documents beside this page.", cells - missing));
    page.0
}

/// The page over all seeds of one arm.
pub(super) fn over_seeds(title: &str, results: &Value, params: &Params) -> String {
    let seeds = text(at(results, &["seeds"]));
    let mut page =
        Page::new(&format!("{title}: results over seeds {}", seeds.trim_matches(['[', ']']).replace(',', ", ")));
    page.line(&format!(
        "{} of {} seeds; mean, sample standard deviation, 95 % t interval",
        text(at(results, &["num_seeds"])),
        text(at(results, &["num_seeds_expected"]))
    ));
    page.block("Over seeds");
    page.row("", &["mean".into(), "sd".into(), "95 % interval".into()]);
    let line = |page: &mut Page, label: &str, key: &str, scale: f64, digits: u8| {
        let of = at(results, &[key]);
        let scaled = |name: &str| number(of, &[name]).map(|x| x * scale);
        let interval = match (scaled("ci_lower"), scaled("ci_upper")) {
            (Some(lower), Some(upper)) => format!("{} to {}", fixed(lower, digits), fixed(upper, digits)),
            _ => "n/a".to_owned(),
        };
        let n = number(of, &["n"]).unwrap_or(0.0);
        let short_of = if Some(n) == number(of, &["n_expected"]) { String::new() } else { format!(" (n = {n})") };
        page.row(&format!("{label}{short_of}"), &[show(scaled("mean"), digits), show(scaled("std"), digits), interval]);
    };
    for model in params.models.keys() {
        page.line(&format!("{}:", visible(model)));
        line(&mut page, "  perplexity", &format!("{model}_perplexity"), 1.0, 2);
        line(&mut page, "  HotFlip success, %", &format!("{model}_hotflip_success_rate"), 100.0, 1);
        line(&mut page, "  random control, %", &format!("{model}_hotflip_random_success_rate"), 100.0, 1);
        line(&mut page, "  HotFlip rise, nats", &format!("{model}_hotflip_delta_nats"), 1.0, 3);
        line(&mut page, "  UAT rise of loss, %", &format!("{model}_uat_nll_increase_percent"), 1.0, 2);
        line(&mut page, "  UAT success, %", &format!("{model}_uat_success_rate"), 100.0, 1);
    }
    line(&mut page, "perplexity gap, %", "perplexity_gap_percent", 1.0, 1);
    line(&mut page, "HotFlip reduction, %", "hotflip_reduction_percent", 1.0, 1);

    page.block("Paired tests over seeds");
    for (metric, test) in at(results, &["statistical_tests"]).as_object().into_iter().flatten() {
        let n = text(at(test, &["n"]));
        match at(test, &["degenerate"]).as_str() {
            Some(why) => page.line(&format!("{metric}: no test (n = {n}: {why})")),
            None => page.line(&format!(
                "{metric}: t = {}, p = {} ({} after Bonferroni over {}), d = {}, n = {n}",
                show(number(test, &["t_stat"]), 3),
                show(number(test, &["p_value"]), 4),
                show(number(test, &["p_value_bonferroni"]), 4),
                text(at(test, &["bonferroni_m"])),
                show(number(test, &["cohens_d"]), 2),
            )),
        }
    }
    criteria(&mut page, results);
    page.0
}
