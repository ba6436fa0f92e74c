//! The study that `seedbed new` writes: the one in `configs/hello.toml`, under another name.

use crate::record::Name;

/// The text of a commented study of that name, to be written as `<name>.toml`. It is sound and runs as it is.
pub fn new_study(name: &Name) -> String {
    include_str!("../../../configs/hello.toml")
        .replace("# hello: a study", &format!("# {name}: a study"))
        .replace("name  = \"hello\"", &format!("name  = \"{name}\""))
        .replace("configs/hello.toml", &format!("{name}.toml"))
        .replace("results/hello/", &format!("results/{name}/"))
}
