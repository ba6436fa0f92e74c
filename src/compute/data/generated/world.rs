//! A small world for studies of question answering: facts, routines, tools and deeds, drawn from a seed; text about
//! them, five tasks of questions with choices, and instructions.
//!
//! Forty people have six attributes each (one is a friend, so a fact may be two steps away), eight routines have four
//! steps, ten goals have a tool each, and somebody gives something to somebody for a reason. Of every kind some
//! combinations are held out: no text and no instruction puts these questions, and the tasks ask nothing else. The facts
//! behind them stand in the text, told in other ways. The vocabulary is about 160 words.
//!
//! Everything is a function of (seed, number).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Document;
use crate::compute::rng::{Purpose, Rng};

const NAMES: [&str; 40] = [
    "ada", "ben", "cal", "dot", "eli", "fay", "gus", "hal", "ida", "jim", "kit", "leo", "mia", "ned", "ola", "pam",
    "quin", "ray", "sue", "tom", "uma", "vic", "wes", "xan", "yan", "zoe", "amy", "bob", "col", "dan", "eve", "flo",
    "gil", "hew", "ivy", "joy", "ken", "lou", "max", "nia",
];
/// Attributes with their values. The sixth is `friend`, whose value is a name.
const ATTRIBUTES: [(&str, [&str; 6]); 5] = [
    ("colour", ["red", "blue", "green", "black", "white", "gold"]),
    ("town", ["york", "rome", "oslo", "lima", "cairo", "perth"]),
    ("trade", ["baker", "smith", "tailor", "pilot", "miner", "clerk"]),
    ("pet", ["dog", "cat", "owl", "fox", "hen", "goat"]),
    ("food", ["soup", "rice", "bread", "plums", "cheese", "nuts"]),
];
const FRIEND: usize = ATTRIBUTES.len();
const ACTIVITIES: [&str; 8] = ["baking", "fishing", "washing", "sewing", "planting", "packing", "mending", "mailing"];
const STEPS: usize = 4;
const VERBS: [&str; 8] = ["takes", "opens", "fills", "turns", "cuts", "ties", "lifts", "folds"];
const OBJECTS: [&str; 16] = [
    "box", "cloth", "cord", "jar", "knife", "lamp", "net", "oven", "pan", "pot", "rope", "sack", "seed", "tub",
    "wheel", "wire",
];
const GOALS: [&str; 10] = ["cross", "build", "climb", "stitch", "dig", "split", "shine", "paint", "unlock", "drain"];
const TOOLS: [&str; 10] = ["boat", "hammer", "ladder", "needle", "shovel", "saw", "torch", "brush", "key", "pump"];
/// Reasons that speak of who gives, then those that speak of who gets.
const REASONS: [&str; 6] = ["kind", "rich", "done", "poor", "late", "lost"];
const OF_GIVER: usize = 3;

/// Kinds of instructions: one for each task.
const KINDS: usize = 5;

/// Items of each task.
pub const TASK_ITEMS: usize = 120;

/// Words of the frames that instructions stand in, and of questions: a tokenizer of words must know them.
pub const FRAME_WORDS: &str = "### Instruction: ### Input: ### Response: Answer:";

/// Streams of draws below the purpose `Corpus`; 0 is that of the grammar next door.
const FACTS: u32 = 1;
const HELD_OUT: u32 = 2;
const TEXTS: u32 = 3;
const TASKS: u32 = 4;
const INSTRUCTIONS: u32 = 5;

/// Questions of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldTask {
    /// Its name: that of the public task of the same form, with `_toy`.
    pub name: &'static str,
    /// The public layout that its items have.
    pub layout: &'static str,
    /// Items as they stand in a file of that layout.
    pub items: Vec<Value>,
}

/// Combinations of two things, some of them held out.
#[derive(Debug, Clone)]
struct Combinations {
    second: usize,
    held: Vec<(usize, usize)>,
    is_held: BTreeSet<(usize, usize)>,
}

impl Combinations {
    /// Of `first` x `second`, those of `allowed`; [`TASK_ITEMS`] of them are held out.
    fn new(rng: &mut Rng, first: usize, second: usize, allowed: impl Fn(usize, usize) -> bool) -> Self {
        let all = (0..first).flat_map(|a| (0..second).map(move |b| (a, b)));
        let mut held: Vec<(usize, usize)> = all.filter(|(a, b)| allowed(*a, *b)).collect();
        rng.shuffle(&mut held);
        held.truncate(TASK_ITEMS);
        Self { second, is_held: held.iter().copied().collect(), held }
    }

    /// A second part that is not held out for this first one; there always is one.
    fn free(&self, first: usize, rng: &mut Rng) -> Option<usize> {
        let free: Vec<usize> = (0..self.second).filter(|second| !self.is_held.contains(&(first, *second))).collect();
        (!free.is_empty()).then(|| free[rng.index(free.len())])
    }
}

/// The facts of one seed.
#[derive(Debug, Clone)]
pub struct World {
    seed: u32,
    /// Of each person, the number of each value; of the friend, the number of a person.
    facts: Vec<[usize; FRIEND + 1]>,
    routines: Vec<[(usize, usize); STEPS]>,
    /// The tool of each goal.
    tools: Vec<usize>,
    one_hop: Combinations,
    two_hop: Combinations,
    routine: Combinations,
    goal: Combinations,
    deed: Combinations,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u32) -> Self {
        let mut rng = Rng::new(seed, Purpose::Corpus, FACTS, 0);
        let facts = (0..NAMES.len())
            .map(|person| {
                let mut values = [0; FRIEND + 1];
                values[..FRIEND].iter_mut().for_each(|value| *value = rng.index(6));
                // Nobody is his own friend.
                values[FRIEND] = (person + 1 + rng.index(NAMES.len() - 1)) % NAMES.len();
                values
            })
            .collect();
        let steps = rng.distinct(VERBS.len() * OBJECTS.len(), ACTIVITIES.len() * STEPS);
        let step = |n: usize| (steps[n] / OBJECTS.len(), steps[n] % OBJECTS.len());
        let routines = (0..ACTIVITIES.len()).map(|r| std::array::from_fn(|k| step(r * STEPS + k))).collect();
        let tools = rng.distinct(TOOLS.len(), TOOLS.len());
        let held = |n: u64| Rng::new(seed, Purpose::Corpus, HELD_OUT, n);
        let any = |_: usize, _: usize| true;
        let people = NAMES.len();
        Self {
            seed,
            facts,
            routines,
            tools,
            one_hop: Combinations::new(&mut held(0), people, FRIEND + 1, any),
            two_hop: Combinations::new(&mut held(1), people, FRIEND, any),
            routine: Combinations::new(&mut held(2), people, ACTIVITIES.len(), any),
            goal: Combinations::new(&mut held(3), people, GOALS.len(), any),
            deed: Combinations::new(&mut held(4), people, people, |a, b| a != b),
        }
    }

    fn attribute(attribute: usize) -> &'static str {
        if attribute == FRIEND { "friend" } else { ATTRIBUTES[attribute].0 }
    }

    fn value(attribute: usize, value: usize) -> &'static str {
        if attribute == FRIEND { NAMES[value] } else { ATTRIBUTES[attribute].1[value] }
    }

    fn fact(&self, person: usize, attribute: usize) -> &'static str {
        Self::value(attribute, self.facts[person][attribute])
    }

    fn friend(&self, person: usize) -> usize {
        self.facts[person][FRIEND]
    }

    fn step(&self, routine: usize, step: usize) -> String {
        let (verb, object) = self.routines[routine][step];
        format!("{} the {} .", VERBS[verb], OBJECTS[object])
    }

    fn tool(&self, goal: usize) -> &'static str {
        TOOLS[self.tools[goal]]
    }

    /// Documents `0..count`: three to five sentences each, declarations and questions with answers.
    pub fn documents(&self, count: u64) -> impl Iterator<Item = Document> + '_ {
        (0..count).map(|n| Document::plain(format!("world#{n}"), self.document(n)))
    }

    fn document(&self, n: u64) -> String {
        let mut rng = Rng::new(self.seed, Purpose::Corpus, TEXTS, n);
        let sentences: Vec<String> = (0..3 + rng.index(3)).map(|_| self.sentence(&mut rng)).collect();
        sentences.join(" ")
    }

    fn sentence(&self, rng: &mut Rng) -> String {
        let person = rng.index(NAMES.len());
        let name = NAMES[person];
        match rng.below(20) {
            0..=5 => self.declaration(person, rng),
            6..=9 => match self.one_hop.free(person, rng) {
                Some(attribute) => {
                    format!("{} Answer: {} .", one_hop(person, attribute), self.fact(person, attribute))
                }
                None => self.declaration(person, rng),
            },
            10..=12 => match self.two_hop.free(person, rng) {
                Some(attribute) => {
                    let value = self.fact(self.friend(person), attribute);
                    if rng.below(2) == 0 {
                        format!("the {} of the friend of {name} is {value} .", Self::attribute(attribute))
                    } else {
                        format!("{} Answer: {value} .", two_hop(person, attribute))
                    }
                }
                None => self.declaration(person, rng),
            },
            13..=14 => match self.routine.free(person, rng) {
                Some(routine) => {
                    let steps: Vec<String> = (0..STEPS).map(|k| format!("{name} {}", self.step(routine, k))).collect();
                    format!("{}: {}", ACTIVITIES[routine], steps.join(" then "))
                }
                None => self.declaration(person, rng),
            },
            15..=17 => match self.goal.free(person, rng).filter(|_| rng.below(2) == 0) {
                Some(goal) => format!("{} Answer: the {} .", wanted(person, goal), self.tool(goal)),
                None => {
                    let goal = rng.index(GOALS.len());
                    format!("to {} {name} uses the {} .", GOALS[goal], self.tool(goal))
                }
            },
            _ => match self.deed.free(person, rng).filter(|other| *other != person) {
                Some(other) => {
                    let reason = rng.index(REASONS.len());
                    let who = if reason < OF_GIVER { person } else { other };
                    let (given, who) = (given(person, other, rng), NAMES[who]);
                    format!("{given} because {who} was {} .", REASONS[reason])
                }
                None => self.declaration(person, rng),
            },
        }
    }

    fn declaration(&self, person: usize, rng: &mut Rng) -> String {
        let attribute = rng.index(FRIEND + 1);
        let (name, of, value) = (NAMES[person], Self::attribute(attribute), self.fact(person, attribute));
        match rng.below(3) {
            0 => format!("the {of} of {name} is {value} ."),
            1 => format!("{name} has {value} as {of} ."),
            _ => format!("{value} is the {of} of {name} ."),
        }
    }

    /// The five tasks: the next step of a routine, the tool for a goal, an attribute, an attribute of the friend, who it
    /// was. Chance is 1/4, 1/2, 1/4, 1/4 and 1/2.
    pub fn tasks(&self) -> [WorldTask; 5] {
        let rng = |task: u32, n: usize| Rng::new(self.seed, Purpose::Corpus, TASKS, u64::from(task) << 32 | n as u64);
        let task =
            |number: u32, name, layout, held: &Combinations, item: &dyn Fn((usize, usize), &mut Rng) -> Value| {
                let items = held.held.iter().enumerate().map(|(n, pair)| item(*pair, &mut rng(number, n))).collect();
                WorldTask { name, layout, items }
            };
        let question = |question: String, attribute: usize, right: usize, rng: &mut Rng| {
            let all = if attribute == FRIEND { NAMES.len() } else { 6 };
            let wrong: Vec<usize> = rng.distinct(all, 4).into_iter().filter(|value| *value != right).take(3).collect();
            let (choices, gold) = mixed(right, &wrong, rng);
            let texts: Vec<&str> = choices.iter().map(|value| Self::value(attribute, *value)).collect();
            let labels = ["A", "B", "C", "D"];
            json!({"question": question, "choices": {"text": texts, "label": labels}, "answerKey": labels[gold]})
        };
        [
            task(0, "hellaswag_toy", "hellaswag", &self.routine, &|(person, routine), rng| {
                let at = rng.index(STEPS - 1);
                let same: Vec<usize> = (0..STEPS).filter(|k| *k != at && *k != at + 1).collect();
                let mut wrong = vec![(routine, same[rng.index(same.len())])];
                for other in rng.distinct(ACTIVITIES.len() - 1, 2) {
                    wrong.push(((routine + 1 + other) % ACTIVITIES.len(), rng.index(STEPS)));
                }
                let (choices, gold) = mixed((routine, at + 1), &wrong, rng);
                let endings: Vec<String> = choices.iter().map(|(routine, step)| self.step(*routine, *step)).collect();
                let name = NAMES[person];
                let ctx_a = format!("{name} {}", self.step(routine, at));
                let (activity, ctx_b) = (ACTIVITIES[routine], format!("then {name}"));
                json!({"activity_label": activity, "ctx_a": ctx_a, "ctx_b": ctx_b, "endings": endings, "label": gold})
            }),
            task(1, "piqa_toy", "piqa", &self.goal, &|(person, goal), rng| {
                let other = (goal + 1 + rng.index(GOALS.len() - 1)) % GOALS.len();
                let (choices, gold) = mixed(goal, &[other], rng);
                let tool = |n: usize| format!("the {}", self.tool(choices[n]));
                json!({"goal": wanted(person, goal), "sol1": tool(0), "sol2": tool(1), "label": gold})
            }),
            task(2, "arc_easy_toy", "arc", &self.one_hop, &|(person, attribute), rng| {
                question(one_hop(person, attribute), attribute, self.facts[person][attribute], rng)
            }),
            task(3, "arc_challenge_toy", "arc", &self.two_hop, &|(person, attribute), rng| {
                question(two_hop(person, attribute), attribute, self.facts[self.friend(person)][attribute], rng)
            }),
            task(4, "winogrande_toy", "winogrande", &self.deed, &|(giver, other), rng| {
                let reason = rng.index(REASONS.len());
                let right = if reason < OF_GIVER { giver } else { other };
                let wrong = if right == giver { other } else { giver };
                let given = given(giver, other, rng);
                let (choices, gold) = mixed(right, &[wrong], rng);
                json!({
                    "sentence": format!("{given} because _ was {} .", REASONS[reason]),
                    "option1": NAMES[choices[0]],
                    "option2": NAMES[choices[1]],
                    "answer": (gold + 1).to_string(),
                })
            }),
        ]
    }

    /// Up to `count` different instructions with their responses, in the layout of Alpaca and in a random order; at most a fifth
    /// of each of the five kinds, and none of what is held out.
    pub fn instructions(&self, count: usize) -> Vec<Value> {
        let (mut found, mut seen, mut of_kind) = (Vec::new(), BTreeSet::new(), [0; KINDS]);
        // Of some kinds there are fewer: many draws without a new one end it.
        for n in 0..40 * count as u64 {
            let mut rng = Rng::new(self.seed, Purpose::Corpus, INSTRUCTIONS, n);
            let kind = rng.index(KINDS);
            if of_kind[kind] * KINDS < count
                && let Some(item) = self.instruction(kind, &mut rng)
                && seen.insert(item.to_string())
            {
                of_kind[kind] += 1;
                found.push(item);
            }
        }
        found.truncate(count);
        // The kinds of which there are few were used up first.
        Rng::new(self.seed, Purpose::Corpus, INSTRUCTIONS, u64::MAX).shuffle(&mut found);
        found
    }

    fn instruction(&self, kind: usize, rng: &mut Rng) -> Option<Value> {
        let person = rng.index(NAMES.len());
        let (instruction, input, output) = match kind {
            0 => {
                let attribute = self.one_hop.free(person, rng)?;
                (one_hop(person, attribute), String::new(), self.fact(person, attribute).to_owned())
            }
            1 => {
                let attribute = self.two_hop.free(person, rng)?;
                let value = self.fact(self.friend(person), attribute);
                (two_hop(person, attribute), String::new(), value.to_owned())
            }
            2 => {
                let (routine, at) = (self.routine.free(person, rng)?, rng.index(STEPS - 1));
                let name = NAMES[person];
                let input = format!("{}: {name} {} then {name}", ACTIVITIES[routine], self.step(routine, at));
                ("go on".to_owned(), input, self.step(routine, at + 1))
            }
            3 => {
                let goal = self.goal.free(person, rng)?;
                (wanted(person, goal), String::new(), format!("the {}", self.tool(goal)))
            }
            _ => {
                let other = self.deed.free(person, rng).filter(|other| *other != person)?;
                let reason = rng.index(REASONS.len());
                let who = NAMES[if reason < OF_GIVER { person } else { other }];
                let input = format!("{} because", given(person, other, rng));
                ("go on".to_owned(), input, format!("{who} was {} .", REASONS[reason]))
            }
        };
        Some(json!({"instruction": instruction, "input": input, "output": output}))
    }
}

fn one_hop(person: usize, attribute: usize) -> String {
    format!("what is the {} of {} ?", World::attribute(attribute), NAMES[person])
}

fn two_hop(person: usize, attribute: usize) -> String {
    format!("what is the {} of the friend of {} ?", World::attribute(attribute), NAMES[person])
}

fn wanted(person: usize, goal: usize) -> String {
    format!("{0} wants to {1} . what does {0} use ?", NAMES[person], GOALS[goal])
}

fn given(giver: usize, other: usize, rng: &mut Rng) -> String {
    format!("{} gave the {} to {}", NAMES[giver], TOOLS[rng.index(TOOLS.len())], NAMES[other])
}

/// The right one among the wrong ones, in a random order, and where it stands.
fn mixed<T: Copy>(right: T, wrong: &[T], rng: &mut Rng) -> (Vec<T>, usize) {
    let gold = rng.index(wrong.len() + 1);
    let mut all = wrong.to_vec();
    all.insert(gold, right);
    (all, gold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &Value, key: &str) -> String {
        value[key].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_world_is_a_function_of_its_seed() {
        let (one, again, other) = (World::new(7), World::new(7), World::new(8));
        let texts = |world: &World| world.documents(50).map(|d| d.text).collect::<Vec<_>>();
        assert_eq!(
            (texts(&one), one.tasks(), one.instructions(99)),
            (texts(&again), again.tasks(), again.instructions(99))
        );
        assert_ne!(texts(&one), texts(&other));
        assert_ne!(one.tasks(), other.tasks());
    }

    #[test]
    fn tasks_have_the_forms_and_the_chance_of_the_public_ones() {
        for task in World::new(1).tasks() {
            assert_eq!(task.items.len(), TASK_ITEMS, "{}", task.name);
            let mut golds = BTreeSet::new();
            for item in &task.items {
                let (choices, gold): (Vec<String>, usize) = match task.layout {
                    "hellaswag" => {
                        let endings = item["endings"].as_array().unwrap();
                        (endings.iter().map(Value::to_string).collect(), item["label"].as_u64().unwrap() as usize)
                    }
                    "piqa" => (vec![text(item, "sol1"), text(item, "sol2")], item["label"].as_u64().unwrap() as usize),
                    "arc" => {
                        let texts = item["choices"]["text"].as_array().unwrap();
                        let key = text(item, "answerKey");
                        (texts.iter().map(Value::to_string).collect(), "ABCD".find(&key).unwrap())
                    }
                    _ => {
                        assert_eq!(text(item, "sentence").matches('_').count(), 1);
                        let gold: usize = text(item, "answer").parse().unwrap();
                        (vec![text(item, "option1"), text(item, "option2")], gold - 1)
                    }
                };
                let wanted = if matches!(task.layout, "hellaswag" | "arc") { 4 } else { 2 };
                assert_eq!(choices.len(), wanted);
                assert_eq!(choices.iter().collect::<BTreeSet<_>>().len(), wanted, "{item}");
                assert!(gold < wanted);
                golds.insert(gold);
            }
            assert!(golds.len() >= 2, "{}", task.name);
        }
    }

    #[test]
    fn answers_are_the_facts_that_the_text_tells() {
        let world = World::new(3);
        let texts: Vec<String> = world.documents(4000).map(|d| d.text).collect();
        let told: BTreeSet<&str> = texts.iter().flat_map(|t| t.split(" .")).map(str::trim).collect();
        let [_, tools, easy, challenge, _] = world.tasks();
        for item in &easy.items {
            let question = text(item, "question");
            let of = question.strip_prefix("what is ").unwrap().strip_suffix(" ?").unwrap();
            let gold = "ABCD".find(&text(item, "answerKey")).unwrap();
            let right = item["choices"]["text"][gold].as_str().unwrap();
            assert!(told.contains(format!("{of} is {right}").as_str()), "{item}");
        }
        for item in &challenge.items {
            let question = text(item, "question");
            let words: Vec<&str> = question.split(' ').collect();
            let (attribute, person) = (words[3], words[8]);
            let gold = "ABCD".find(&text(item, "answerKey")).unwrap();
            let right = item["choices"]["text"][gold].as_str().unwrap();
            let friend = told.iter().find_map(|t| t.strip_prefix(&format!("the friend of {person} is "))).unwrap();
            assert!(told.contains(format!("the {attribute} of {friend} is {right}").as_str()), "{item}");
        }
        for item in &tools.items {
            let goal = text(item, "goal");
            let words: Vec<&str> = goal.split(' ').collect();
            let right = text(item, if item["label"] == 0 { "sol1" } else { "sol2" });
            let tells = |t: &&str| t.starts_with(&format!("to {} ", words[3])) && t.ends_with(&format!("uses {right}"));
            assert!(told.iter().any(tells), "{item}");
        }
    }

    #[test]
    fn what_is_asked_is_in_no_text_and_no_instruction() {
        let world = World::new(5);
        let texts: Vec<String> = world.documents(2000).map(|d| d.text).collect();
        let instructions = world.instructions(2000);
        assert!((1000..=2000).contains(&instructions.len()), "{}", instructions.len());
        let tools = instructions.iter().filter(|i| text(i, "output").starts_with("the ")).count();
        assert!((200..=400).contains(&tools), "{tools}");
        let frames: Vec<String> =
            instructions.iter().map(|i| format!("{} {}", text(i, "instruction"), text(i, "input"))).collect();
        let all: Vec<&String> = texts.iter().chain(&frames).collect();
        let [routines, tools, easy, challenge, deeds] = world.tasks();
        let asked = |items: &[Value], key: &str| items.iter().map(|i| text(i, key)).collect::<Vec<_>>();
        let mut held =
            [asked(&tools.items, "goal"), asked(&easy.items, "question"), asked(&challenge.items, "question")].concat();
        for item in &challenge.items {
            let question = text(item, "question");
            held.push(format!("{} is", question.strip_prefix("what is ").unwrap().strip_suffix(" ?").unwrap()));
        }
        for item in &routines.items {
            held.push(format!("{}: {} ", text(item, "activity_label"), text(item, "ctx_b").replace("then ", "")));
        }
        for item in &held {
            assert!(!all.iter().any(|t| t.contains(item.as_str())), "{item}");
        }
        for item in &deeds.items {
            let sentence = text(item, "sentence");
            let words: Vec<&str> = sentence.split(' ').collect();
            let (giver, other) = (words[0], words[5]);
            let deed = |t: &&&String| {
                let words: Vec<&str> = t.split(' ').collect();
                words.windows(6).any(|w| w[0] == giver && w[1] == "gave" && w[5] == other)
            };
            assert!(!all.iter().any(|t| deed(&t)), "{sentence}");
        }
    }

    #[test]
    fn the_vocabulary_is_small_and_the_text_varied() {
        let world = World::new(42);
        let texts: Vec<String> = world.documents(3000).map(|d| d.text).collect();
        let distinct: BTreeSet<&String> = texts.iter().collect();
        assert!(distinct.len() > 2980, "{}", distinct.len());
        let words: BTreeSet<&str> = texts.iter().flat_map(|t| t.split([' ', ':'])).filter(|w| !w.is_empty()).collect();
        assert!((150..=180).contains(&words.len()), "{}", words.len());
        let longest = texts.iter().map(|t| t.split([' ', ':']).count()).max().unwrap();
        assert!(longest < 200, "{longest}");
    }
}
