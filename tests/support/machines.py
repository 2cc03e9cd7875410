"""Files of /proc and /sys of other machines."""

from collections.abc import Mapping
from pathlib import Path

# Parts of /proc/cpuinfo of real machines, with some flags: an AMD Ryzen 9 5950X and a Graviton2
# from archspec, an EPYC 9004 in a virtual machine, an Intel Xeon 8488C and a Graviton3 of AWS.
ZEN_3 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD Ryzen 9 5950X 16-Core Processor
flags\t\t: fpu vme de pse sse sse2 ht syscall nx ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes avx \
f16c rdrand lahf_lm svm abm sse4a fsgsbase bmi1 avx2 smep bmi2 erms rdseed adx smap sha_ni vaes
power management: ts ttp tm hwpstate cpb eff_freq_ro [13] [14]

processor\t: 1
"""

ZEN_4 = """\
processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu vme de pse tsc msr pni pclmulqdq ssse3 fma avx f16c bmi1 avx2 smep bmi2 avx512f \
avx512dq rdseed adx avx512ifma avx512cd sha_ni avx512bw avx512vl avx512_bf16 avx512vbmi gfni vaes \
avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid fsrm
"""

GRAVITON_3 = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt \
fcma lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg \
dcpodp svei8mm svebf16 i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def write_files(root: Path, files: Mapping[str, str]) -> Path:
    """Write files to a folder, such as those of /proc and /sys on another machine."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
