//! `cargo xtask vm`: the suites that need a kernel, on other kernels than the one that runs here: Debian's, in QEMU, each with nothing
//! but the test programs, this checkout's files and the few tools that the tests call.

use crate::suite::{self, Counts, Program, Suite};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Kernels by the name under which they are asked for, and the release of Debian that has them. The oldest that Palisade runs on comes first,
/// the newest that there is last.
const KERNELS: &[(&str, &str)] = &[("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("newest", "sid")];

/// Commands that the tests call; what else a guest needs is busybox.
const TOOLS: &[&str] = &["ip", "tc", "setpriv", "bash", "ping", "bpftool", "kmod"];

/// Where modules are of which a guest may need some. They are loaded when they are asked for.
const MODULES: &[&str] = &["arch", "crypto", "drivers/net", "lib", "net"];

/// Longer than all suites take with nothing but emulation.
const LIMIT_SECONDS: &str = "5400";

/// Runs the suites named, or all that need a kernel alone, on the kernels named, or all. Of a suite that is named as `SUITE/PROGRAM` that program
/// alone: emulation makes some slow.
pub fn run(root: &Path, kernels: &[String], suites: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = kernels.iter().find(|name| !KERNELS.iter().any(|(kernel, _)| kernel == name)) {
        let names: Vec<&str> = KERNELS.iter().map(|(name, _)| *name).collect();
        bail!("no kernel is called `{unknown}`; there are: {}", names.join(", "));
    }
    ensure!(std::env::consts::ARCH == "x86_64", "the guests are x86_64 machines; this one is {}", std::env::consts::ARCH);
    let asked = asked(suites)?;
    let built = suite::build(root)?;
    let is_asked = |program: &&Program| {
        asked.iter().any(|(suite, target)| suite.holds(program) && target.is_none_or(|target| program.target == target))
    };
    let programs: Vec<&Program> = built.programs.iter().filter(is_asked).collect();
    if let Some((_, target)) = asked.iter().find(|(_, target)| target.is_some_and(|it| programs.iter().all(|program| program.target != it)))
    {
        bail!("no test program is called `{}`", target.unwrap_or_default());
    }
    let mut total = Counts::default();
    let mut lines = Vec::new();
    for (name, release) in KERNELS.iter().filter(|(name, _)| kernels.is_empty() || kernels.iter().any(|kernel| kernel == name)) {
        println!("==> kernel {name} of Debian {release}");
        let begin = Instant::now();
        let directory = root.join("target/kernels").join(release);
        let kernel = fetched(&directory, release).with_context(|| format!("the kernel of Debian {release}"))?;
        let image = packed(root, &directory, &kernel, &programs, &built.binaries)?;
        let (version, counts) = started(&kernel, &image)?;
        total.add(counts);
        lines.push(counts.line(&version, begin.elapsed()));
    }
    println!();
    for line in lines {
        println!("{line}");
    }
    Ok(total.close())
}

/// What is asked for: suites, of some of them one program alone.
fn asked(names: &[String]) -> Result<Vec<(&'static Suite, Option<&str>)>> {
    if names.is_empty() {
        return Ok(suite::of_kernel(&[])?.into_iter().map(|suite| (suite, None)).collect());
    }
    let mut asked = Vec::new();
    for name in names {
        let (suite, target) = name.split_once('/').map_or((name.as_str(), None), |(suite, target)| (suite, Some(target)));
        asked.extend(suite::of_kernel(&[suite.to_owned()])?.into_iter().map(|suite| (suite, target)));
    }
    Ok(asked)
}

/// A kernel and its modules, as files.
struct Kernel {
    version: String,
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The one that packages were unpacked to in `folder`.
    fn of(folder: &Path) -> Result<Self> {
        // Since 6.17 Debian has both in one place; before, the image is in /boot.
        let modules = ["usr/lib/modules", "lib/modules"].map(|path| folder.join(path));
        let entry = modules.iter().find_map(|path| std::fs::read_dir(path).ok()?.next()?.ok()).context("the packages hold no modules")?;
        let version = entry.file_name().to_string_lossy().into_owned();
        let images = [entry.path().join("vmlinuz"), folder.join(format!("boot/vmlinuz-{version}"))];
        let image = images.into_iter().find(|path| path.exists()).context("the packages hold no kernel image")?;
        Ok(Self { version, image, modules: entry.path() })
    }
}

/// The release's newest kernel for virtual machines, in `directory`: fetched when it is not there. The machine's own lists of packages stay as
/// they are.
fn fetched(directory: &Path, release: &str) -> Result<Kernel> {
    let unpacked = directory.join("unpacked");
    if !unpacked.exists() {
        println!("fetching it");
        let [lists, cache, packages, fresh] = ["lists", "cache", "packages", "unpacking"].map(|name| directory.join(name));
        for folder in [lists.join("partial"), cache.join("archives/partial"), packages.clone()] {
            std::fs::create_dir_all(folder)?;
        }
        let source = directory.join("sources.list");
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        std::fs::write(&source, format!("deb [signed-by={keys}] http://deb.debian.org/debian {release} main\n"))?;
        let apt = |program: &str| {
            let mut command = Command::new(program);
            let options = [
                format!("Dir::Etc::SourceList={}", source.display()),
                "Dir::Etc::SourceParts=/dev/null".to_owned(),
                format!("Dir::State::Lists={}", lists.display()),
                "Dir::State::Status=/dev/null".to_owned(),
                format!("Dir::Cache={}", cache.display()),
                "Acquire::Languages=none".to_owned(),
                "APT::Sandbox::User=root".to_owned(),
            ];
            command.args(options.iter().flat_map(|option| ["-o", option])).current_dir(&packages);
            command
        };
        output(apt("apt-get").args(["--quiet", "update"]))?;
        let needed = output(apt("apt-cache").args(["depends", "--recurse", "--important", "linux-image-cloud-amd64"]))?;
        output(apt("apt-get").args(["--quiet", "download"]).args(kernel_packages(&needed)))?;
        for package in std::fs::read_dir(&packages)? {
            output(Command::new("dpkg-deb").arg("--extract").arg(package?.path()).arg(&fresh))?;
        }
        std::fs::rename(&fresh, &unpacked)?;
        for folder in [lists, cache, packages] {
            std::fs::remove_dir_all(folder)?;
        }
    }
    Kernel::of(&unpacked)
}

/// Of the names that `apt-cache depends` prints, those of a kernel's files: `linux-image-VERSION`, and since 6.17 `linux-binary-VERSION` and
/// `linux-modules-VERSION`.
fn kernel_packages(depends: &str) -> BTreeSet<&str> {
    let is_one = |name: &&str| {
        let version = ["linux-image-", "linux-binary-", "linux-modules-"].iter().find_map(|prefix| name.strip_prefix(prefix));
        version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    };
    depends.lines().filter(is_one).collect()
}

/// The guest's file system: an archive that the kernel unpacks into memory.
fn packed(root: &Path, directory: &Path, kernel: &Kernel, programs: &[&Program], binaries: &[PathBuf]) -> Result<PathBuf> {
    let guest = directory.join("guest");
    if guest.exists() {
        std::fs::remove_dir_all(&guest)?;
    }
    for folder in ["dev", "opt", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin"] {
        std::fs::create_dir_all(guest.join(folder))?;
    }
    for folder in ["bin", "lib", "lib64", "sbin"] {
        symlink(format!("usr/{folder}"), guest.join(folder))?;
    }
    put(&guest, &root.join("tests/kernels/init"), Path::new("/init"))?;
    let busybox = found("busybox")?;
    ensure!(output(Command::new("ldd").arg(&busybox)).is_err(), "{} is not static: install busybox-static", busybox.display());
    put(&guest, &busybox, Path::new("/bin/busybox"))?;
    symlink("../bin/kmod", guest.join("sbin/modprobe"))?;
    symlink("bash", guest.join("bin/sh"))?;
    for tool in TOOLS {
        let path = found(tool)?;
        for library in libraries(&output(Command::new("ldd").arg(&path)).unwrap_or_default()) {
            put(&guest, library, library)?;
        }
        put(&guest, &path, &path)?;
    }
    let files = output(Command::new("git").args(["ls-files", "-z"]).current_dir(root))?;
    for file in files.split('\0').filter(|file| !file.is_empty()).map(|file| root.join(file)).filter(|file| file.is_file()) {
        put(&guest, &file, &file)?;
    }
    let mut list = String::new();
    for program in programs {
        let path = &program.executable;
        list += &format!("{}\t{}\t{}\t{}\n", program.package, program.target, program.folder.display(), path.display());
        put(&guest, path, path)?;
    }
    // Tests call them where cargo puts them.
    for binary in binaries {
        put(&guest, binary, binary)?;
    }
    std::fs::write(guest.join("programs"), list)?;
    put_modules(&guest, kernel)?;
    let image = directory.join("guest.cpio");
    let archive = "set -o pipefail; find . -print0 | cpio --null --create --format newc --quiet";
    let into = std::fs::File::create(&image).with_context(|| format!("writing {}", image.display()))?;
    let status = Command::new("bash").args(["-c", archive]).current_dir(&guest).stdout(into).status().context("starting bash")?;
    ensure!(status.success(), "cpio could not make the guest's file system: is there space?");
    std::fs::remove_dir_all(&guest)?;
    Ok(image)
}

fn put_modules(guest: &Path, kernel: &Kernel) -> Result<()> {
    let into = guest.join("usr/lib/modules").join(&kernel.version);
    for part in MODULES {
        let from = kernel.modules.join("kernel").join(part);
        if from.exists() {
            let to = into.join("kernel").join(part);
            std::fs::create_dir_all(&to)?;
            output(Command::new("cp").args(["--recursive", "--no-target-directory"]).arg(from).arg(to))?;
        }
    }
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if kernel.modules.join(list).exists() {
            std::fs::copy(kernel.modules.join(list), into.join(list))?;
        }
    }
    // kmod may have been built without what unpacks them.
    output(Command::new("find").arg(&into).args(["-name", "*.ko.xz", "-exec", "unxz", "{}", "+"]))?;
    output(Command::new("depmod").arg("--basedir").arg(guest).arg(&kernel.version))?;
    Ok(())
}

/// Starts the guest and reads what its first process says. Gives the kernel's version.
fn started(kernel: &Kernel, image: &Path) -> Result<(String, Counts)> {
    // Emulated, for it is the same everywhere: what a machine that is itself a guest offers as KVM may not start a kernel.
    let mut command = Command::new("timeout");
    command.args(["--kill-after", "20", LIMIT_SECONDS, "qemu-system-x86_64", "-accel", "tcg,thread=multi"]);
    command.args(["-cpu", "max", "-smp", "2", "-m", "4096", "-nographic", "-no-reboot", "-nic", "none"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(image);
    command.args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting QEMU")?;
    let mut console = Console::default();
    if let Some(stdout) = child.stdout.take() {
        let mut out = std::io::stdout();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            writeln!(out, "{}", line.trim_end())?;
            console.read(line.trim_end());
        }
    }
    child.wait()?;
    Ok((kernel.version.clone(), console.counts()))
}

/// What a guest said so far.
#[derive(Default)]
struct Console {
    counts: Counts,
    /// Failures before the program that runs.
    failed_before: usize,
    ended: bool,
}

impl Console {
    fn read(&mut self, line: &str) {
        self.counts.add(suite::said(line));
        if line.starts_with("--- ") {
            self.failed_before = self.counts.failed;
        } else if let Some(status) = line.strip_prefix("=== ended ") {
            if status != "0" && self.counts.failed == self.failed_before {
                eprintln!("the program ended with status {status} though no test reported a failure");
                self.counts.failed += 1;
            }
        } else if line == "=== all" {
            self.ended = true;
        }
    }

    /// A guest that did not come to its end, or ran nothing, has failed.
    fn counts(mut self) -> Counts {
        if !self.ended {
            eprintln!("the guest ended before its tests did");
            self.counts.failed += 1;
        } else if self.counts.passed + self.counts.failed == 0 {
            eprintln!("no test ran, which is a failure");
            self.counts.failed += 1;
        }
        self.counts
    }
}

/// The files that `ldd` names.
fn libraries(ldd: &str) -> impl Iterator<Item = &Path> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new)
}

/// Where a command is.
fn found(command: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut places = folders.map(|folder| folder.join(command));
    places.find(|place| place.is_file()).with_context(|| format!("there is no `{command}` here: bootstrap/install kernels installs it"))
}

/// Copies a file into the guest, as an absolute path there.
fn put(guest: &Path, file: &Path, at: &Path) -> Result<()> {
    let to = guest.join(at.strip_prefix("/")?);
    std::fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
    std::fs::copy(file, &to).with_context(|| format!("copying {} into the guest", file.display()))?;
    let mode = std::fs::metadata(file)?.permissions().mode();
    Ok(std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode))?)
}

/// What a command prints.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}: bootstrap/install kernels installs what is missing"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}", error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Counts {
        let mut console = Console::default();
        lines.iter().for_each(|line| console.read(line));
        console.counts()
    }

    #[test]
    fn a_guest_that_ends_early_or_runs_nothing_has_failed() {
        assert_eq!(read(&["--- a b", "test result: ok. 3 passed; 0 failed; 0 ignored", "=== ended 0", "=== all"]).failed, 0);
        assert_eq!(read(&["--- a b", "test result: ok. 3 passed; 0 failed; 0 ignored"]).failed, 1);
        assert_eq!(read(&["=== all"]).failed, 1);
    }

    #[test]
    fn a_program_that_dies_is_a_failure_once() {
        let result = "test result: FAILED. 1 passed; 2 failed; 0 ignored";
        assert_eq!(read(&["--- a b", result, "=== ended 101", "--- a c", "=== ended 139", "=== all"]).failed, 3);
    }

    #[test]
    fn the_packages_of_a_kernel_are_those_with_a_version() {
        let depends =
            "linux-image-cloud-amd64\n  Depends: x\nlinux-image-6.1.0-50-cloud-amd64\nlinux-base\nlinux-binary-7.2.13+deb14-cloud-amd64";
        assert_eq!(
            kernel_packages(depends).into_iter().collect::<Vec<_>>(),
            ["linux-binary-7.2.13+deb14-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64"]
        );
    }

    #[test]
    fn ldd_names_libraries_by_path() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib/ld.so (0x3)\n";
        assert_eq!(libraries(text).collect::<Vec<_>>(), [Path::new("/lib/x/libc.so.6"), Path::new("/lib/ld.so")]);
    }
}
