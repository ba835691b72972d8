// SPDX-License-Identifier: Apache-2.0
#pragma once

// Macros that headers of other people define, here with a body that no code survives. What would break the standard
// library or Eigen as well is not among them, when it comes before those.

// windows.h
#define min(a, b) a macro of windows
#define max(a, b) a macro of windows
#define near a macro of windows
#define far a macro of windows
#define small a macro of windows
#define hyper a macro of windows
#define interface a macro of windows
#define pascal a macro of windows
#define cdecl a macro of windows
#define IN a macro of windows
#define OUT a macro of windows
#define OPTIONAL a macro of windows
#define CONST a macro of windows
#define VOID a macro of windows
#define ERROR a macro of windows
#define NO_ERROR a macro of windows
#define DELETE a macro of windows
#define IGNORE a macro of windows
#define STRICT a macro of windows
#define ABSOLUTE a macro of windows
#define RELATIVE a macro of windows
#define OPAQUE a macro of windows
#define TRANSPARENT a macro of windows
#define DOMAIN a macro of windows
#define OVERFLOW a macro of windows
#define UNDERFLOW a macro of windows
#define Yield() a macro of windows
#define GetObject a macro of windows

// X11/X.h, X11/Xlib.h
#define Bool a macro of X11
#define Status a macro of X11
#define None a macro of X11
#define Always a macro of X11
#define Success a macro of X11
#define True a macro of X11
#define False a macro of X11
#define Window a macro of X11
#define Complex a macro of X11
#define Convex a macro of X11
#define Unsorted a macro of X11
#define Above a macro of X11
#define Below a macro of X11
#define Expose a macro of X11
#define KeyPress a macro of X11
#define FocusIn a macro of X11
#define CursorShape a macro of X11

// AssertMacros.h
#define check(x) a macro of AssertMacros
#define verify(x) a macro of AssertMacros
#define require(x, label) a macro of AssertMacros

// complex.h
#define complex a macro of complex
#define imaginary a macro of complex
#define I a macro of complex

// sys/sysmacros.h, sys/param.h, termios.h
#define major(device) a macro of sysmacros
#define minor(device) a macro of sysmacros
#define makedev(major, minor) a macro of sysmacros
#define MIN(a, b) a macro of param
#define MAX(a, b) a macro of param
#define B0 a macro of termios
#define B50 a macro of termios
#define ECHO a macro of termios

// curses.h, as far as it leaves the standard library alone
#define refresh() a macro of curses
#define timeout(delay) a macro of curses
#define scroll(window) a macro of curses

// glib.h, Qt, loggers and frameworks
#define TRUE a macro of glib
#define FALSE a macro of glib
#define ABS(a) a macro of glib
#define CLAMP(x, low, high) a macro of glib
#define emit a macro of Qt
#define slots a macro of Qt
#define signals a macro of Qt
#define foreach(item, items) a macro of Qt
#define forever a macro of Qt
#define CHECK(x) a macro of a logger
#define LOG(x) a macro of a logger
#define DEBUG a macro of a logger
#define INFO a macro of a logger
#define FAIL() a macro of a test framework
#define TEST(suite, name) a macro of a test framework
#define EPSILON a macro of somebody
#define PI a macro of somebody

// What compilers define with their extensions on.
#undef unix
#undef linux
#define unix a macro of a compiler
#define linux a macro of a compiler
