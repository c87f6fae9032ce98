//! The runner of FEX's tests, over tests of our own in their form. Code is given as bytes: nasm is for theirs.

use conformance::expected::Expected;
use conformance::suite::{differences, execute};
use x86cpu::Engine;

const ENGINES: [Engine; 2] = [Engine::Interpreter, Engine::Jit { after: 0, longest: 64 }];

fn expected(json: &str) -> Expected {
    Expected::parse(&format!("%ifdef CONFIG\n{json}\n%endif\nhlt\n")).unwrap()
}

fn failures(json: &str, code: &[u8]) -> Vec<Vec<String>> {
    let expected = expected(json);
    ENGINES.iter().map(|engine| differences(&expected, &execute(code, &expected, *engine).unwrap())).collect()
}

#[test]
fn a_test_reads_its_memory_and_leaves_its_registers() {
    // mov rax, [0x100000000]; movq xmm1, rax; fld1; fldpi; hlt
    let code = [
        &[0x48, 0xa1, 0, 0, 0, 0, 1, 0, 0, 0][..],
        &[0x66, 0x48, 0x0f, 0x6e, 0xc8],
        &[0xd9, 0xe8, 0xd9, 0xeb],
        &[0xf4],
    ]
    .concat();
    let right = r#"{ "RegData": {
            "RAX": "0x1122334455667788", "XMM1": ["0x1122334455667788", "0"],
            "MM7": ["0x8000000000000000", "0x3fff"], "MM6": ["0xc90fdaa22168c235", "0x4000"], "RIP": "0x10013" },
        "MemoryRegions": { "0x100000000": "4096" },
        "MemoryData": { "0x100000000": "88 77 66 55 44 33 22 11" } }"#;
    assert_eq!(failures(right, &code), [Vec::<String>::new(), Vec::new()]);
    let wrong = right.replace("\"0x3fff\"", "\"0x3ffe\"");
    let said = ["MM7[1] is 0x3fff instead of 0x3ffe".to_owned()];
    assert_eq!(failures(&wrong, &code), [said.clone(), said]);
}

#[test]
fn an_exception_is_no_end() {
    // ud2
    let said = ["ended in exception 6 at 0x10000".to_owned()];
    assert_eq!(failures(r#"{ "RegData": { "RAX": "0" } }"#, &[0x0f, 0x0b]), [said.clone(), said]);
    // in al, dx is a #GP as well, but no HLT
    let said = ["ended in exception 13 at 0x10000".to_owned()];
    assert_eq!(failures("{}", &[0xec]), [said.clone(), said]);
}

#[test]
fn code_of_32_bits_runs_as_such() {
    // inc eax; hlt: in 64-bit mode the first byte would be a prefix
    let json = r#"{ "RegData": { "RAX": "1" }, "Mode": "32BIT" }"#;
    assert_eq!(failures(json, &[0x40, 0xf4]), [Vec::<String>::new(), Vec::new()]);
    assert_ne!(failures(&json.replace("32BIT", "64BIT"), &[0x40, 0xf4]), [Vec::<String>::new(), Vec::new()]);
}

#[test]
fn configurations_are_read_or_refused() {
    let all = expected(
        r#"{ "RegData": { "rax": "-1", "XMM0": ["0b11", "7"] }, "HostFeatures": ["sse4.1"],
            "Env": { "FEX_X": "1" }, "MemoryData": { "0x1000": "0xf1e2" }, "Match": "All" }"#,
    );
    assert_eq!(all.registers["RAX"], [u64::MAX]);
    assert_eq!(all.registers["XMM0"], [3, 7]);
    assert_eq!(all.features, ["SSE4.1"]);
    assert_eq!(all.data, [(0x1000, vec![0xe2, 0xf1])]);
    for bad in [r#"{ "RegData": { "RAX": "x" } }"#, r#"{ "Surprise": 1 }"#, "{", r#"{ "RegData": 3 }"#] {
        let text = format!("%ifdef CONFIG\n{bad}\n%endif\n");
        assert!(Expected::parse(&text).is_err(), "{bad}");
    }
    assert!(Expected::parse("hlt").is_err());
}
