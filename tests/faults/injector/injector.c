/*
 * Counts the calls that change files below one folder (or, on request, those that read them), and at one of them kills
 * the process or makes the call fail. Preloaded (LD_PRELOAD) and asleep until inject_arm() is called in the process.
 *
 * A killed call has not happened, or (torn) only its first half has; a call that fails has done nothing, or (torn) wrote
 * its first half before the error, as on a disk that fills up. What fired is written to a descriptor that is not
 * watched, before it happens.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define HANDLES 4096
enum { GO_ON, FAIL, FAIL_TORN };

static atomic_int armed;
static atomic_long counted, failed;
static atomic_char watched[HANDLES];
static char folder[1024];
static size_t folder_length;
static long fire_at, fire_times;
static int fire_errno, fire_torn, count_reads, report;

/* at: which call, from 1 (0: none, only count). error: the errno, 0 to kill. times: how often in a row, -1 for ever. */
void inject_arm(const char *below, long at, int error, long times, int torn, int reads, int report_to) {
    snprintf(folder, sizeof folder, "%s", below);
    folder_length = strlen(folder);
    fire_at = at;
    fire_errno = error;
    fire_times = times;
    fire_torn = torn;
    count_reads = reads;
    report = report_to;
    counted = failed = 0;
    armed = 1;
}

void inject_disarm(void) { armed = 0; }

long inject_count(void) { return counted; }

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int below(const char *path) {
    return armed && !strncmp(path, folder, folder_length) && (!path[folder_length] || path[folder_length] == '/');
}

static int is_watched(int fd) { return armed && fd >= 0 && fd < HANDLES && watched[fd]; }

/* Count one call, and say what is to become of it. `what` is a handle's call or path, for the report. */
static int decide(int relevant, int reads, int can_tear, const char *call, const char *what) {
    if (!relevant || reads != count_reads) return GO_ON;
    long number = ++counted;
    if (!fire_at || number < fire_at) return GO_ON;
    if (fire_times >= 0 && failed >= fire_times) return GO_ON;
    failed++;
    char line[1200];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, what);
    syscall(SYS_write, report, line, (size_t)length);
    if (fire_torn && can_tear) return FAIL_TORN;
    if (!fire_errno) raise(SIGKILL);
    errno = fire_errno;
    return FAIL;
}

static int torn(void) {
    if (!fire_errno) raise(SIGKILL);
    errno = fire_errno;
    return -1;
}

static const char *named(int fd) {
    static _Thread_local char path[512];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    return path;
}

#define ON_HANDLE(call, reads, tears, fail, half, go_on) \
    if (is_watched(fd)) switch (decide(1, reads, tears, call, fire_at ? named(fd) : "")) { \
        case FAIL: return fail; \
        case FAIL_TORN: half; return torn(); \
    } \
    return go_on;

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(write);
    ON_HANDLE("write", 0, size > 1, -1, real(fd, bytes, size / 2), real(fd, bytes, size))
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
    REAL(pwrite);
    ON_HANDLE("pwrite", 0, size > 1, -1, real(fd, bytes, size / 2, at), real(fd, bytes, size, at))
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
    REAL(pwrite64);
    ON_HANDLE("pwrite", 0, size > 1, -1, real(fd, bytes, size / 2, at), real(fd, bytes, size, at))
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    ON_HANDLE("writev", 0, count > 1, -1, real(fd, parts, count / 2), real(fd, parts, count))
}

ssize_t read(int fd, void *bytes, size_t size) {
    REAL(read);
    ON_HANDLE("read", 1, 0, -1, , real(fd, bytes, size))
}

ssize_t pread(int fd, void *bytes, size_t size, off_t at) {
    REAL(pread);
    ON_HANDLE("pread", 1, 0, -1, , real(fd, bytes, size, at))
}

ssize_t pread64(int fd, void *bytes, size_t size, off64_t at) {
    REAL(pread64);
    ON_HANDLE("pread", 1, 0, -1, , real(fd, bytes, size, at))
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    ON_HANDLE("ftruncate", 0, 0, -1, , real(fd, size))
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    ON_HANDLE("ftruncate", 0, 0, -1, , real(fd, size))
}

int fsync(int fd) {
    REAL(fsync);
    ON_HANDLE("fsync", 0, 0, -1, , real(fd))
}

int fdatasync(int fd) {
    REAL(fdatasync);
    ON_HANDLE("fdatasync", 0, 0, -1, , real(fd))
}

int fchmod(int fd, mode_t mode) {
    REAL(fchmod);
    ON_HANDLE("fchmod", 0, 0, -1, , real(fd, mode))
}

#define ON_PATH(call, path, go_on) return decide(below(path), 0, 0, call, path) == FAIL ? -1 : go_on;

int rename(const char *from, const char *to) {
    REAL(rename);
    ON_PATH("rename", to, real(from, to))
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(renameat);
    ON_PATH("rename", to, real(from_at, from, to_at, to))
}

int link(const char *from, const char *to) {
    REAL(link);
    ON_PATH("link", to, real(from, to))
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    REAL(linkat);
    ON_PATH("link", to, real(from_at, from, to_at, to, flags))
}

int unlink(const char *path) {
    REAL(unlink);
    ON_PATH("unlink", path, real(path))
}

int unlinkat(int at, const char *path, int flags) {
    REAL(unlinkat);
    ON_PATH("unlink", path, real(at, path, flags))
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    ON_PATH("mkdir", path, real(path, mode))
}

int mkdirat(int at, const char *path, mode_t mode) {
    REAL(mkdirat);
    ON_PATH("mkdir", path, real(at, path, mode))
}

int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    ON_PATH("chmod", path, real(path, mode))
}

int fchmodat(int at, const char *path, mode_t mode, int flags) {
    REAL(fchmodat);
    ON_PATH("chmod", path, real(at, path, mode, flags))
}

static int opened(int fd, int relevant) {
    if (fd >= 0 && fd < HANDLES) watched[fd] = (char)relevant;
    return fd;
}

#define OPEN(path, flags, go_on) \
    mode_t mode = 0; \
    if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    } \
    int relevant = below(path); \
    if (decide(relevant && (flags & O_CREAT), 0, 0, "open", path) == FAIL) return -1; \
    return opened(go_on, relevant);

int open(const char *path, int flags, ...) {
    REAL(open);
    OPEN(path, flags, real(path, flags, mode))
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    OPEN(path, flags, real(path, flags, mode))
}

int openat(int at, const char *path, int flags, ...) {
    REAL(openat);
    OPEN(path, flags, real(at, path, flags, mode))
}

int openat64(int at, const char *path, int flags, ...) {
    REAL(openat64);
    OPEN(path, flags, real(at, path, flags, mode))
}

int close(int fd) {
    REAL(close);
    opened(fd, 0);
    return real(fd);
}
