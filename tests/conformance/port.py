#!/usr/bin/env python3
"""Port the original Autobahn TestSuite (PyPI sdist, Python 2.7) to Python 3, mechanically.

usage: port.py UNPACKED_SDIST SITE_PACKAGES
  UNPACKED_SDIST  the folder autobahntestsuite-25.10.1 (from `pip download --no-binary :all:`)
  SITE_PACKAGES   of a Python 3 venv with autobahn==0.10.9 (the version the suite pins) and Twisted

How: 2to3 for the syntax; the case files keep their Python 2 byte strings as latin-1 `str`
(one char = one octet), converted to bytes where they enter autobahn and back where
payloads leave it. No case's own logic (what is sent, expected, allowed) is edited, but for
'/' -> '//' in 10.1.1 and the bytes-native 12.x/13.x. Each edit asserts how often it matches.
"""
import pathlib, re, shutil, sys
from lib2to3 import refactor       # in the standard library up to Python 3.12

src, site = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
dst = site / "autobahntestsuite"
shutil.rmtree(dst, ignore_errors=True)
shutil.copytree(src / "autobahntestsuite", dst)
for p in dst.glob("*.py"):          # WAMP and wsperf modes: not part of `wstest -m fuzzing*`
    if re.match(r"wamp|wsperf|testdb|testrun|interfaces|rinterfaces|report_|broadcast|massconnect|serializer|echo", p.name):
        p.unlink()
p = dst / "report.py"               # keep the CSS/JS of the HTML report, drop the WAMP report generator (jinja2)
p.write_text(p.read_text().split("REPORT_DIR_PERMISSIONS")[0].replace("import jinja2\n", ""))
p = dst / "__init__.py"
p.write_text(p.read_text().split("import choosereactor")[0])
(dst / "case/case9_9_1.py").unlink()   # disabled upstream ("#Cases += [Case9_9_1]")

# --- 1. octets: read/write the case files as latin-1 ------------------------------------
for p in dst.glob("case/*.py"):
    t = p.read_bytes().decode("latin-1").split("\n")
    t = [l for i, l in enumerate(t) if not (i < 2 and "coding" in l)]
    p.write_bytes(("# -*- coding: latin-1 -*-\n" + "\n".join(t)).encode("latin-1"))

# --- 2. 2to3 ------------------------------------------------------------------------------
fixers = refactor.get_fixers_from_package("lib2to3.fixes")
tool = refactor.RefactoringTool([f for f in fixers if not f.endswith("fix_idioms")])
tool.refactor([str(dst)], write=True)

# --- 3. hand edits ------------------------------------------------------------------------
def edit(path, *subs):
    p = dst / path
    enc = "latin-1" if path.startswith("case/") else "utf-8"
    s = p.read_text(encoding=enc)
    for old, new, n in subs:
        got = s.count(old)
        assert got == n, f"{path}: {old!r} found {got}x, expected {n}x"
        s = s.replace(old, new)
    p.write_text(s, encoding=enc)

(dst / "octets.py").write_text('''"""latin-1 str <-> bytes, and binascii for both"""
import binascii
def b(x): return x.encode("latin-1") if isinstance(x, str) else x
def s(x): return x if isinstance(x, str) else bytes(x).decode("latin-1")
def b2a_hex(x): return binascii.b2a_hex(b(x)).decode("ascii")
hexlify = b2a_hex
''')

for p in dst.glob("case/*.py"):
    t = p.read_text(encoding="latin-1")
    t = re.sub(r"^import binascii$", "from .. import octets as binascii", t, flags=re.M)
    t = t.replace("hashlib, binascii\n", "hashlib\nfrom .. import octets as binascii\n")
    t = t.replace("(object, Case, )", "(Case, )")       # MRO: all classes are new-style now
    p.write_text(t, encoding="latin-1")

edit("case/__init__.py", ("from case9_9_1 import *\n", "", 1))
edit("case/case.py",
     ("return pickle.dumps(obj1) == pickle.dumps(obj2)", "return obj1 == obj2", 1))
edit("case/case10_1_1.py", ("len(self.payload) / self.p", "len(self.payload) // self.p", 1))
edit("case/case6_x_x.py", ("v.validate(vss[:i])", "v.validate(vss[:i].encode('latin-1'))", 1))
edit("case/case12_x_x.py", ('"sendOne": sendOne,', '"sendOne": sendOne, "RAW_BYTES": True,', 2))
edit("caseset.py", (r"replace('.', '\.')", r"replace('.', r'\.')", 3))

edit("wstest.py",
     ("\nimport echo\n", "\n", 1), ("\nimport broadcast\n", "\n", 1),
     ("\nimport massconnect\n", "\n", 1), ("\nimport serializer\n", "\n", 1))

FUZZ = '''class FuzzingProtocol:
   """
   Common mixin-base class for fuzzing server and client protocols.
   """
   # py3: octet strings of the cases (latin-1 str) become bytes here
   def sendFrame(self, opcode, payload = b"", fin = True, rsv = 0, mask = None, payload_len = None, chopsize = None, sync = False):
      super().sendFrame(opcode, octets.b(payload), fin, rsv, octets.b(mask), payload_len, chopsize, sync)
   def sendMessage(self, payload, *a, **kw):
      super().sendMessage(octets.b(payload), *a, **kw)
   def sendPing(self, payload = None):
      super().sendPing(octets.b(payload))
   def sendPong(self, payload = None):
      super().sendPong(octets.b(payload))
   def sendMessageFrameData(self, payload, *a, **kw):
      return super().sendMessageFrameData(octets.b(payload), *a, **kw)
   def sendCloseFrame(self, code = None, reasonUtf8 = None, isReply = False):
      super().sendCloseFrame(code, octets.b(reasonUtf8), isReply)
'''
LOGS = '''def binLogData(data, maxlen = 64):
   ellipses = " ..."
   if len(data) > maxlen - len(ellipses):
      return octets.b2a_hex(data[:maxlen]) + ellipses
   return octets.b2a_hex(data)



def asciiLogData(data, maxlen = 64, replace = False):
   ellipses = " ..."
   try:
      dd = octets.b(data)
      if len(dd) > maxlen - len(ellipses):
         dd = dd[:maxlen] + ellipses.encode()
      return dd.decode('utf8', errors = 'replace' if replace else 'strict')
   except Exception:
      return '0x' + binLogData(data, maxlen)



'''
p = dst / "fuzzing.py"
t = p.read_text()
t, n = re.subn(r"def binLogData.*?(?=class FuzzingProtocol:)", lambda m: LOGS, t, flags=re.S); assert n == 1
t = re.sub(r"class FuzzingProtocol:\n   \"\"\"\n.*?\"\"\"\n", lambda m: FUZZ, t, count=1, flags=re.S)
p.write_text(t)
edit("fuzzing.py",
     ("import os, json, binascii, time,", "from . import octets\nfrom . import octets as binascii\nimport os, json, time,", 1),
     ("''.join(payload)", "octets.s(b''.join(payload))", 1),
     ("self.runCase.onPong(payload)", "self.runCase.onPong(octets.s(payload))", 1),
     ("self.runCase.onMessage(msg, binary)",
      "self.runCase.onMessage(msg if getattr(self.runCase, 'RAW_BYTES', False) else octets.s(msg), binary)", 1),
     ("report_filename), 'w')", "report_filename), 'w', encoding = 'utf-8', errors = 'backslashreplace')", 4),
     ("% (c[0], case[c[0]], c[1])).encode(\"utf-8\"))", "% (c[0], case[c[0]], c[1])))", 1),
     ("ll.encode('utf8')", "ll", 1),
     ("self.http_request_data if hasattr", "octets.s(self.http_request_data) if hasattr", 1),
     ("self.http_response_data if hasattr", "octets.s(self.http_response_data) if hasattr", 1),
     ("json.dumps(case, sort_keys = True,", "json.dumps(case, default = octets.s, sort_keys = True,", 1),
     ("self.sendMessage(json.dumps(len(self.factory.specCases)))", "self.sendMessage(json.dumps(len(self.factory.specCases)).encode())", 1),
     )

# --- 4. autobahn 0.10.9's one Python 3 bug on this path --------------------------------------
pp = site / "autobahn/websocket/protocol.py"
t = pp.read_text()
old = "range(payload_len / len(payload))"
if old in t:
    pp.write_text(t.replace(old, "range(payload_len // len(payload))"))
assert "range(payload_len // len(payload))" in pp.read_text()
w = pathlib.Path(sys.prefix) / "bin/wstest"
w.write_text(f"#!{sys.prefix}/bin/python -Wignore\nfrom autobahntestsuite.wstest import run\nrun()\n")
w.chmod(0o755)
print("ported", len(list(dst.glob("case/case*.py"))), "case files to", dst)
