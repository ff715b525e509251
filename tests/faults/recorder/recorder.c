/*
 * Writes down everything that changes files below one folder, with the bytes and in one order for all threads and
 * processes: each call is made and written to the log under one lock. Preloaded (LD_PRELOAD) and asleep until
 * record_arm() is called in the process. Files whose name ends in "-shm" are left out: SQLite maps them, and makes them
 * anew after a power cut.
 *
 * It can also make a row of syncs fail with EIO, without syncing, and kill the process right after a call.
 *
 * A record: payload size (4), kind (1), nothing (3), pid (4), handle (4), number (8), payload.
 *   o open, number = flags, payload = path     w write, number = offset     t truncate, number = size
 *   s sync, number = 0 done, 1 failed          c close                      r rename, payload = from NUL to
 *   u unlink, d rmdir, m mkdir, payload = path (paths are relative to the folder)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define HANDLES 4096

struct record {
    uint32_t size;
    char kind;
    char nothing[3];
    int32_t pid;
    int32_t handle;
    int64_t number;
};

static int armed, the_log = -1;
static char watched[HANDLES];
static char folder[1024];
static size_t folder_length;
static long syncs, fail_at, fail_times, records, kill_at;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

/* fail: which sync, from 1 (0: none), fails first, and how many in a row (-1: for ever).
   kill: after which record this process is killed (0: never). */
void record_arm(const char *below, const char *log, long fail, long times, long kill) {
    snprintf(folder, sizeof folder, "%s", below);
    folder_length = strlen(folder);
    fail_at = fail;
    fail_times = times;
    kill_at = kill;
    syncs = records = 0;
    the_log = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (the_log < 0) abort();
    armed = 1;
}

long record_syncs(void) { return syncs; }

long record_count(void) { return records; }

static void begin(void) {
    pthread_mutex_lock(&guard);
    while (flock(the_log, LOCK_EX))
        if (errno != EINTR) abort();
}

static void end(void) {
    int kept = errno;
    flock(the_log, LOCK_UN);
    pthread_mutex_unlock(&guard);
    errno = kept;
}

static void note(char kind, int handle, int64_t number, const void *payload, size_t size) {
    int kept = errno;
    struct record record = {(uint32_t)size, kind, {0}, getpid(), handle, number};
    struct iovec parts[2] = {{&record, sizeof record}, {(void *)payload, size}};
    if (syscall(SYS_writev, the_log, parts, 2) != (long)(sizeof record + size)) abort();
    if (kill_at && ++records == kill_at) kill(getpid(), SIGKILL);
    if (!kill_at) records++;
    errno = kept;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* The path below the folder ("" for itself), or NULL. */
static const char *below(const char *path) {
    if (!armed || strncmp(path, folder, folder_length)) return NULL;
    if (!path[folder_length]) return "";
    if (path[folder_length] != '/') return NULL;
    size_t length = strlen(path);
    return length > 4 && !strcmp(path + length - 4, "-shm") ? NULL : path + folder_length + 1;
}

static int is_watched(int fd) { return armed && fd >= 0 && fd < HANDLES && watched[fd]; }

#define WRITE(bytes, at, go_on) \
    if (!is_watched(fd)) return go_on; \
    begin(); \
    ssize_t done = go_on; \
    if (done > 0) note('w', fd, at, bytes, (size_t)done); \
    end(); \
    return done;

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(write);
    WRITE(bytes, lseek(fd, 0, SEEK_CUR) - done, real(fd, bytes, size))
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
    REAL(pwrite);
    WRITE(bytes, at, real(fd, bytes, size, at))
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
    REAL(pwrite64);
    WRITE(bytes, at, real(fd, bytes, size, at))
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (!is_watched(fd)) return real(fd, parts, count);
    ssize_t all = 0;
    for (int part = 0; part < count; part++) {
        ssize_t done = write(fd, parts[part].iov_base, parts[part].iov_len);
        if (done < 0) return all ? all : -1;
        all += done;
        if ((size_t)done < parts[part].iov_len) break;
    }
    return all;
}

/* What is not written down must not happen unseen. */
int fallocate(int fd, int mode, off_t at, off_t size) {
    REAL(fallocate);
    if (is_watched(fd)) abort();
    return real(fd, mode, at, size);
}

#define TRUNCATE(size) \
    if (!is_watched(fd)) return real(fd, size); \
    begin(); \
    int failed = real(fd, size); \
    if (!failed) note('t', fd, size, "", 0); \
    end(); \
    return failed;

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    TRUNCATE(size)
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    TRUNCATE(size)
}

#define SYNC \
    if (!is_watched(fd)) return real(fd); \
    begin(); \
    long number = ++syncs; \
    int failed = fail_at && number >= fail_at && (fail_times < 0 || number < fail_at + fail_times); \
    if (failed) errno = EIO; \
    int answer = failed ? -1 : real(fd); \
    note('s', fd, failed, "", 0); \
    end(); \
    return answer;

int fsync(int fd) {
    REAL(fsync);
    SYNC
}

int fdatasync(int fd) {
    REAL(fdatasync);
    SYNC
}

#define ON_NAME(kind, path, go_on) \
    const char *name = below(path); \
    if (!name) return go_on; \
    begin(); \
    int failed = go_on; \
    if (!failed) note(kind, -1, 0, name, strlen(name)); \
    end(); \
    return failed;

#define RENAME(go_on) \
    const char *source = below(from), *target = below(to); \
    if (!source && !target) return go_on; \
    if (!source || !target) abort(); \
    char both[2048]; \
    int size = snprintf(both, sizeof both, "%s%c%s", source, 0, target); \
    begin(); \
    int failed = go_on; \
    if (!failed) note('r', -1, 0, both, (size_t)size); \
    end(); \
    return failed;

int rename(const char *from, const char *to) {
    REAL(rename);
    RENAME(real(from, to))
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(renameat);
    RENAME(real(from_at, from, to_at, to))
}

int link(const char *from, const char *to) {
    REAL(link);
    if (below(to)) abort();
    return real(from, to);
}

int unlink(const char *path) {
    REAL(unlink);
    ON_NAME('u', path, real(path))
}

int unlinkat(int at, const char *path, int flags) {
    REAL(unlinkat);
    ON_NAME(flags & AT_REMOVEDIR ? 'd' : 'u', path, real(at, path, flags))
}

int rmdir(const char *path) {
    REAL(rmdir);
    ON_NAME('d', path, real(path))
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    ON_NAME('m', path, real(path, mode))
}

int mkdirat(int at, const char *path, mode_t mode) {
    REAL(mkdirat);
    ON_NAME('m', path, real(at, path, mode))
}

#define OPEN(path, flags, go_on) \
    mode_t mode = 0; \
    if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    } \
    const char *name = below(path); \
    if (!name) return go_on; \
    begin(); \
    int fd = go_on; \
    if (fd >= HANDLES) abort(); \
    if (fd >= 0) { \
        watched[fd] = 1; \
        note('o', fd, flags, name, strlen(name)); \
    } \
    end(); \
    return fd;

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

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
    REAL(close);
    if (!is_watched(fd)) return real(fd);
    begin();
    watched[fd] = 0;
    note('c', fd, 0, "", 0);
    int failed = real(fd);
    end();
    return failed;
}
