// SPDX-License-Identifier: Apache-2.0
// Source lines as numbers: the file's place in a list and 20 bits of line.
#include <cstring>
#include <string>
#include <vector>

#include "state.h"

namespace fgk::emulation::core {
namespace {

constexpr int kLineBits = 20;
constexpr uint32_t kLineMask = (1u << kLineBits) - 1;

std::vector<const char*> files;
const char* last_file = nullptr;
uint32_t last_index = 0;

void find_file(const char* file) {
  last_file = file;
  for (size_t i = 0; i < files.size(); ++i) {
    if (std::strcmp(files[i], file) == 0) {
      last_index = static_cast<uint32_t>(i);
      return;
    }
  }
  last_index = static_cast<uint32_t>(files.size());
  files.push_back(file);
}

}  // namespace

uint32_t site_id(Site site) {
  if (site.file != last_file) find_file(site.file);
  return (last_index << kLineBits) | (static_cast<uint32_t>(site.line) & kLineMask);
}

Site site_of(uint32_t id) { return {files[id >> kLineBits], static_cast<int>(id & kLineMask)}; }

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string site_text(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

}  // namespace fgk::emulation::core
